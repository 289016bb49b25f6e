"""A chain of pool miners and a loss of ours, as a loss of the trainer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from torch import Tensor, nn

from datamodules.batch import Batch
from hardneg.interop.sentence_transformers.content import content_of, device_of, rows_in
from hardneg.interop.sentence_transformers.guide import Guide
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.modules.base import check_chain
from hardneg.modules.gather import added, gather, reduce
from miners.base import PoolMiner, process_count, process_rank
from miners.in_batch import InBatch
from miners.pool import NOBODY, Block, Items, NegativePool, StepContext
from miners.ragged import Ragged

Direction = Literal["query_to_document", "document_to_query"]


class ChainLoss(CachedLossMixin, nn.Module):
    """A chain of pool miners and one of our losses, as a loss of the trainer.

    Columns, in their order: (anchor, positive), and any number of negatives behind them. A negative that repeats its
    own row's positive is an empty slot (`training_rows` writes such rows), so that lists may differ in length. Equal
    texts are one thing: the positives of rows with the same anchor, duplicates of them and the anchor's own text are
    never its negatives. Or one column with a column of classes: rows of a class are each other's positives.

    Args:
        model: what is trained; the trainer replaces it by its wrapped form.
        miners: the chain, in this order; each direction has its own copy. None = [InBatch()].
        loss: a `hardneg.losses` loss. None = InfoNCE at its default temperature, 0.05 (a ``scale`` of 20).
        guide: a frozen model that judges candidates for `GIST`; texts that its tokenizer reads otherwise are decoded
            for it.
        allow_same_guide: let a guide start from the student's own weights, of which little is to be learned.
        labels: what a column of labels means beside (anchor, positive): "class": no candidate of the anchor's class is
            its negative; "relevance": 1 = the row's document is a positive, 0 = it is a negative and the row has no
            positive. None: no such column.
        directions: "query_to_document", "document_to_query" or both, whose losses are averaged; the latter without the
            columns of negatives.
        similarity: "cosine", or "dot" for models trained with it.
        gather_across_devices: candidates of all processes, with gradient.
        mini_batch_size: gradient caching: so many rows go through the model at a time, and once more in backward; the
            same gradients in less memory. None encodes all at once.
        seed: of the draws that miners make inside a step.

    Raises:
        ValueError: a chain that needs what is not there, the student as its own guide, or trained temperatures with
            ``mini_batch_size``; in training, columns or labels that are none of the above.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        miners: Sequence[PoolMiner] | None = None,
        loss: PoolLoss | None = None,
        guide: SentenceTransformer | None = None,
        allow_same_guide: bool = False,
        labels: Literal["class", "relevance"] | None = None,
        directions: Sequence[Direction] = ("query_to_document",),
        similarity: Literal["cosine", "dot"] = "cosine",
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if labels not in ("class", "relevance", None):
            raise ValueError(f"ChainLoss(labels='{labels}'): wants 'class', 'relevance' or None.")
        if not directions or set(directions) - {"query_to_document", "document_to_query"}:
            raise ValueError(f"directions={list(directions)}: wants query_to_document, document_to_query or both.")
        if mini_batch_size is not None and mini_batch_size < 1:
            raise ValueError(f"ChainLoss(mini_batch_size={mini_batch_size}): wants at least 1, or None.")
        chain = [InBatch()] if miners is None else list(miners)
        self.model = model
        self.loss = loss or InfoNCE()
        provides = {"embeddings", "sides", "own_positive", "drawn", "one_space", "labels"}
        check_chain(chain, self.loss, frozenset(provides | ({"guide"} if guide is not None else set())))
        self.chains = nn.ModuleDict({direction: nn.ModuleList(copy.deepcopy(chain)) for direction in directions})
        self.labels = labels
        self.directions = tuple(directions)
        self.similarity = similarity
        self.gather_across_devices = gather_across_devices
        self.mini_batch_size = mini_batch_size  # type: ignore[assignment]  # the mixin is not asked without one
        self.uses_gradient_cache = mini_batch_size is not None
        own_weights = [*self.loss.parameters(), *self.chains.parameters()]
        for weight in own_weights:  # the trainer averages gradients of the model, and of nothing else
            weight.register_hook(lambda gradient: added(gradient) / process_count())
        if self.uses_gradient_cache and own_weights:
            raise ValueError(
                "ChainLoss(mini_batch_size=...) caches gradients of embeddings only, and this loss or chain has "
                "weights of its own, such as a learned temperature. Fix them, or leave mini_batch_size out."
            )
        if self.uses_gradient_cache and has_static_embedding_input(model):
            raise ValueError(
                "ChainLoss(mini_batch_size=...) cannot cut the bags of words of a StaticEmbedding into mini-batches, "
                "and they need little memory: leave mini_batch_size out."
            )
        self.seed = seed
        self.epoch = 0
        self.steps = 0  # batches trained
        self.pools: list[NegativePool] = []  # of the last training step, until the next one
        self.guide = None if guide is None else Guide(guide, model, allow_same_guide)
        self._views: list[_View] = []
        self._unnamed = 0  # things without an identity that were seen

    def chain_of(self, direction: str) -> Sequence[PoolMiner]:
        """The miners of one direction, in their order."""
        return self.chains[direction]  # type: ignore[return-value]

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        self._commit()
        features = list(sentence_features)
        self._views = [self._view(column) for column in features]  # now: models write into what they are given
        if self.uses_gradient_cache:
            return self.forward_cached(features, labels)
        return self._total([self.model(column)["sentence_embedding"] for column in features], labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        loss = self._total([torch.cat(chunks) for chunks in reps], labels)
        if not with_backward:
            return loss
        loss.backward()
        for chunk in (chunk for chunks in reps for chunk in chunks):
            if chunk.grad is None:  # a column that this chain leaves out
                chunk.grad = torch.zeros_like(chunk)
        return loss.detach()

    def _total(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """The mean over all anchors of all processes, as far as this process' gradient goes."""
        pools = self._pools(embeddings, labels)
        total = embeddings[0].new_zeros((), dtype=torch.float32)
        for number, pool in enumerate(pools):
            chain = self.chain_of(pool.direction)
            for miner in chain:
                pool = miner(pool)
            terms = [self.loss(pool), *(term for miner in chain if (term := miner.aux_loss(pool)) is not None)]
            total = total + torch.stack([reduce(*term) for term in terms]).sum() / len(pools)
            pools[number] = pool
        if self.model.training and torch.is_grad_enabled():
            self.pools = pools
            self.steps += 1
        return total

    def _commit(self) -> None:
        """Let the chain remember the last step; its backward is over when the next step begins."""
        for pool in self.pools:
            for miner in self.chain_of(pool.direction):
                miner.commit(pool)
        self.pools = []

    # ---- pools -----------------------------------------------------------------------------------------------------

    def _pools(self, embeddings: list[Tensor], labels: Tensor | None) -> list[NegativePool]:
        rows = torch.arange(len(embeddings[0]), device=embeddings[0].device)
        if labels is None and self.labels is not None:
            raise ValueError(f"ChainLoss(labels='{self.labels}') found no column of labels in the data set.")
        meaning = self._meaning(labels, len(embeddings))
        sides = self._sides(embeddings, labels if meaning == "class" else None)
        if meaning == "relevance":
            assert labels is not None
            sides["relevance"] = Items(ids=labels.to(rows.device).long(), space="relevance")
        own = slice(0, len(rows))
        if self.gather_across_devices:
            sides, _, own = gather(sides, Batch({}, sides, Ragged.empty(len(rows), rows.device), rows))
        context = StepContext(
            self.epoch, self.steps, self.model.training, self.seed, own.start, len(sides["anchors"]), len(rows)
        )
        relevant = sides.pop("relevance")._need("ids") == 1 if meaning == "relevance" else None
        build = self._of_classes if len(embeddings) == 1 else self._of_pairs
        return [
            replace(
                build(sides, own, relevant, direction),
                temperature=self.loss.temperature,
                similarity=self.similarity,
                direction=direction,
                context=context,
            )
            for direction in self.directions
        ]

    def _meaning(self, labels: Tensor | None, columns: int) -> str | None:
        """What the labels of this batch say; None where there are none."""
        if labels is None:
            if columns == 1:
                raise ValueError(
                    "ChainLoss got one column and no classes, so that no anchor has a positive. Give columns (anchor, "
                    "positive, ...), or a column 'label' with the class of each row."
                )
            return None
        meaning = self.labels or ("class" if columns == 1 else None)
        if meaning is None:
            raise ValueError(
                "the data set has a column of labels beside anchor and positive: say what they mean with "
                "ChainLoss(labels='class') or 'relevance', or leave the column out."
            )
        whole = not labels.is_floating_point() and labels.ndim == 1
        if not whole or (meaning == "relevance" and not bool(((labels == 0) | (labels == 1)).all())):
            wants = "one whole number per row" if meaning == "class" else "0 or 1 per row"
            raise ValueError(
                f"ChainLoss(labels='{meaning}') wants {wants}; got {labels.dtype} of shape {tuple(labels.shape)}, such "
                f"as {labels.flatten()[:3].tolist()}."
            )
        return meaning

    def _sides(self, embeddings: list[Tensor], classes: Tensor | None) -> dict[str, Items]:
        """Anchors, positives and drawn negatives of this process."""
        rows = torch.arange(len(embeddings[0]), device=embeddings[0].device)
        classes = None if classes is None else classes.to(rows.device)
        columns = [
            Items(vectors, view.ids, view.content, guide=view.guide, space="document" if number else "query", rows=rows)
            for number, (vectors, view) in enumerate(zip(embeddings, self._views, strict=True))
        ]
        sides = {"anchors": replace(columns[0], labels=classes)}
        if len(columns) > 1:
            sides["positives"] = replace(columns[1], labels=classes)
        if len(columns) > 2:
            drawn = _end_to_end(columns[2:])
            filled = drawn._need("ids") != columns[1]._need("ids").repeat(len(columns) - 2)
            drawn = drawn if bool(filled.all()) else drawn.take(filled)
            nobody = torch.full_like(drawn._need("ids"), NOBODY)  # a negative's class is not known
            sides["drawn"] = drawn if classes is None else replace(drawn, labels=nobody)
        return sides

    def _of_pairs(
        self, sides: Mapping[str, Items], own: slice, relevant: Tensor | None, direction: str
    ) -> NegativePool:
        forwards = direction == "query_to_document"
        anchors, positives = (
            (sides["anchors"], sides["positives"]) if forwards else (sides["positives"], sides["anchors"])
        )
        roles = {"anchors": anchors, "positives": positives}
        if forwards and "drawn" in sides:
            roles["drawn"] = sides["drawn"]
        mine = positives.take(own)
        parts = {name: part[:, None] for name, part in mine.tensors().items() if name in ("embeddings", "ids", "guide")}
        block = Block(
            Items(space=mine.space, **parts), "positive", usable=None if relevant is None else relevant[own, None]
        )
        return NegativePool(
            anchors.take(own),
            block,
            sides=roles,
            known=_known(anchors, positives, relevant, own),
        )

    def _of_classes(
        self, sides: Mapping[str, Items], own: slice, relevant: Tensor | None, direction: str
    ) -> NegativePool:
        everyone = sides["anchors"]
        mine = everyone.take(own)
        classes = mine._need("labels")[:, None]
        usable = (classes == everyone._need("labels")) & (classes != NOBODY)
        usable &= mine._need("rows")[:, None] != everyone._need("rows")  # no thing is its own positive
        return NegativePool(
            mine, Block(everyone, "positive", usable=usable), sides={"anchors": everyone, "positives": everyone}
        )

    # ---- identities and the guide ----------------------------------------------------------------------------------

    def _view(self, features: Mapping[str, Any]) -> _View:
        content = content_of(features)
        ids = content
        if ids is None:
            number = rows_in(features)
            ids = (self._unnamed + torch.arange(number, device=device_of(features))) * process_count() + process_rank()
            self._unnamed += number
        return _View(ids, content, None if self.guide is None else self.guide.vectors(features))

    # ---- checkpoints and cards -------------------------------------------------------------------------------------

    def chain_state(self) -> dict[str, Any]:
        """Queues, temperatures and clocks: what the trainer's checkpoints leave out."""
        self._commit()
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}
        return {"steps": self.steps, "weights": own}

    def load_chain_state(self, state: Mapping[str, Any]) -> None:
        """Go on where ``chain_state`` was taken.

        Raises:
            ValueError: the state of another chain or loss.
        """
        result = self.load_state_dict(state["weights"], strict=False)
        missing = [name for name in result.missing_keys if not name.startswith("model.")]
        if missing or result.unexpected_keys:
            raise ValueError(
                f"the checkpoint's chain is another one: it lacks {missing} and has {result.unexpected_keys} beside. "
                "Resume with the same miners and loss."
            )
        self.steps = int(state["steps"])

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "miners": [repr(miner) for miner in self.chain_of(self.directions[0])],
            "loss": repr(self.loss),
            "temperature": round(float(torch.as_tensor(self.loss.temperature).detach()), 6),
            "labels": self.labels,
            "directions": list(self.directions),
            "similarity": self.similarity,
            "gather_across_devices": self.gather_across_devices,
            "mini_batch_size": self.mini_batch_size,
        }


@dataclass
class _View:
    """What is known of a column before it is encoded: ids (n,), content (n,), guide vectors (n, g)."""

    ids: Tensor
    content: Tensor | None
    guide: Tensor | None


def _end_to_end(columns: Sequence[Items]) -> Items:
    """The things of several columns as one list."""
    names = columns[0].tensors()
    parts = {name: torch.cat([getattr(column, name) for column in columns]) for name in names}
    return Items(space=columns[0].space, **parts)


def _known(anchors: Items, positives: Items, relevant: Tensor | None, own: slice) -> Ragged | None:
    """Ids of the positives of all rows that have an own anchor's text; None where every row has its own text."""
    unique, codes = anchors._need("ids").unique(return_inverse=True)
    if len(unique) == len(codes):
        return None
    kept = slice(None) if relevant is None else relevant
    return Ragged.from_pairs(codes[kept], positives._need("ids")[kept], len(unique)).select(codes[own])
