"""Composed image retrieval: a reference picture and a text on one side, pictures on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.batch import Batch
from hardneg.encoders.composed import ComposedEncoder
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.metrics.cir import CIRMeasures, evaluate_cir
from hardneg.modules.evaluated import EvaluatedModule
from hardneg.modules.gather import in_order
from hardneg.modules.retrieval import check_frozen
from miners.base import PoolMiner, process_count, process_rank
from miners.in_batch import InBatch
from miners.pool import Block, Items, NegativePool, StepContext
from miners.static_bank import GUIDED
from miners.store import Store

SIDES = frozenset({"target", "reference"})
TEMPERATURE = 0.01


class CIRModule(EvaluatedModule):
    """Train composed queries so that they lie next to the picture that was meant.

    Stage 1 trains everything on the batch: ``miners=[InBatch()]``. Stage 2 freezes both kinds of picture vectors and
    pushes each query away from the whole bank: ``frozen={target, reference}`` and ``miners=[StaticBank()]``; no picture
    is decoded or encoded, and only the text encoder and the combiner learn.

    Args:
        encoder: of pictures and of composed queries.
        loss: None = InfoNCE at 0.01, CLIP4Cir's; stage 2 wants 0.02 to 0.05, since a bank has thousands of columns.
        miners: None = [InBatch()].
        learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size, momentum: as in `ContrastiveModule`.
        guide: a frozen encoder that judges candidates for `GIST`, such as the model of stage 1; its vectors are made
            once, before training.
        allow_same_guide: let a guide start from the student's own weights, as stage 1's model does in stage 2.
        frozen: stores of pictures, by what they serve as: "target" (the bank) and "reference" (what the combiner takes,
            not normalised), each a `Store` or its folder. Where both are the image encoder's own vectors, as
            `hardneg predict` writes them, one folder serves as both. Both or none: a picture encoder that is trained
            leaves its bank behind.
        eval_batch_size: pictures per batch when a gallery is encoded.

    Raises:
        ValueError: one frozen side alone, or with ``momentum``; a guide with the student's own weights; a store of
            another width, of other weights, of another data set, or without a picture that training meets.

    Source:
        SPN4CIR, arXiv 2404.11317, section 3; stage 1: Baldrati et al. (CLIP4Cir).
    """

    directions = ("query_to_target",)
    similarity = "cosine"
    raw_spaces = frozenset({"image"})
    """Spaces that `hardneg predict` writes as they are: the combiner wants the length of a vector."""

    def __init__(
        self,
        encoder: ComposedEncoder,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_share: float = 0.0,
        schedule: Literal["linear", "constant"] = "constant",
        guide: ComposedEncoder | None = None,
        allow_same_guide: bool = False,
        frozen: Mapping[str, str | Store] | None = None,
        eval_batch_size: int = 128,
        seed: int = 0,
        chunk_size: int | None = None,
        momentum: float | None = None,
    ) -> None:
        super().__init__(
            InfoNCE(TEMPERATURE) if loss is None else loss,
            [InBatch()] if miners is None else miners,
            learning_rate,
            weight_decay,
            warmup_share,
            schedule,
            seed,
            chunk_size,
            momentum,
        )
        self.encoder = encoder
        self.eval_batch_size = eval_batch_size
        provides = {"embeddings", "sides", "own_positive"}
        self._guide = [guide] if guide is not None else []  # outside the module tree: it belongs in no checkpoint
        self.guide_stores: dict[str, Store] = {}
        if guide is not None:
            if not allow_same_guide and guide.fingerprint("query") == encoder.fingerprint("query"):
                raise ValueError(
                    "the guide has the student's own weights: it would judge by what the student already believes. "
                    "Give a stronger guide, or set model.init_args.allow_same_guide: true."
                )
            provides.add("guide")
        if frozen and set(frozen) != SIDES:
            raise ValueError(
                f"frozen={sorted(frozen)}: wants 'target' and 'reference', both or none. With one alone the picture "
                "encoder would be trained away from it."
            )
        if frozen and momentum is not None:
            raise ValueError(
                "momentum moves the encoder of candidates, and here they are frozen: leave one of both out."
            )
        self.frozen = {side: _store(given) for side, given in (frozen or {}).items()}
        if self.frozen:
            for side, store in self.frozen.items():
                if store.dim != encoder.dim:
                    raise ValueError(
                        f"frozen '{side}' has vectors of {store.dim} numbers, the encoder of {encoder.dim}. It was "
                        "made by another encoder: encode the pictures again with this one (hardneg predict)."
                    )
            provides.add("frozen")
            encoder.freeze_images()
        self.provides = frozenset(provides)
        self.measures: CIRMeasures | None = None
        self._gallery: tuple[Any, str, Store] | None = None  # data, split and raw features
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.data.with_pictures = not self.frozen
        channels = getattr(self.encoder.images, "channels", self.data.channels)
        if self.data.channels != channels:
            raise ValueError(
                f"the data has pictures of {self.data.channels} channels, the encoder wants {channels}. Set "
                "data.init_args.channels and the backbone's alike."
            )

    def encode(self, batch: Batch) -> dict[str, Items]:
        sides = {}
        for side, items in batch.items.items():
            inputs = batch.inputs[side]
            if self._guide:
                guide = self.guide_stores[items.space].rows(items._need("ids"))
                items = replace(items, guide=guide.to(self.device))
            if side == "query":
                vectors = self._composed(self.encoder, inputs)
            elif self.frozen:
                vectors = self._frozen_rows("target", inputs)
            elif self.slow is not None:
                with torch.no_grad():
                    vectors = self.slow(inputs, "image")
            else:
                vectors = self.encoder(inputs, "image")
            sides[side] = replace(items, embeddings=vectors)
        return sides

    def _composed(self, encoder: ComposedEncoder, inputs: Mapping[str, Any]) -> Tensor:
        if self.frozen:
            return encoder.compose(self._frozen_rows("reference", inputs["ids"]), inputs["text"])
        return encoder({"reference": inputs["reference"].to(self.device), "text": inputs["text"]}, "query")

    def _frozen_rows(self, side: str, ids: Tensor) -> Tensor:
        return self.frozen[side].rows(ids).to(self.device)

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        target = sides["target"].take(own)
        wide = {name: part[:, None] for name, part in target.tensors().items()}
        return [
            NegativePool(
                anchors=sides["query"].take(own),
                positives=Block(replace(target, **wide), "positive"),  # type: ignore[arg-type]
                temperature=self.loss.temperature,
                direction=self.directions[0],
                sides={"anchors": sides["query"], "positives": sides["target"]},
                known=batch.known.select(own),
                context=context,
            )
        ]

    def on_fit_start(self) -> None:
        data = self.data
        if self._guide and not self.guide_stores:
            self.guide_stores = self._guided()
        if not self.frozen:
            return
        key = self.encoder.fingerprint("image")
        for side, store in self.frozen.items():
            check_frozen(store, side, data.training_pictures, data.names("image"))
            if store.key and store.key != key:
                raise ValueError(
                    f"frozen '{side}' was made by other weights than this encoder's, which encode the galleries. "
                    "Encode the pictures again with this encoder (hardneg predict)."
                )
        stores = {"image": self.frozen["target"]}
        if self._guide:
            stores[GUIDED + "image"] = self.guide_stores["image"]
        for miner in self.chain_of(self.directions[0]):
            miner.refresh(stores)

    def _guided(self) -> dict[str, Store]:
        """The guide's vectors, each process its share: each picture that it is asked for once, and the queries."""
        guide, asked = self._guide[0].to(self.device), self.data.training_pictures
        if self.frozen:
            asked = torch.cat([asked, self.frozen["target"].ids]).unique()
        stores: dict[str, Store] = {}
        for space, ids in (("image", asked), ("query", self.data.table.anchors)):
            share = self.embed_share(space, guide, ids, stores.get("image"))
            stores[space] = Store(in_order(share, len(ids), self.device), ids, space, key=guide.fingerprint(space))
        return stores

    def embed_share(
        self,
        space: str,
        encoder: nn.Module | None = None,
        ids: Tensor | None = None,
        pictures: Store | None = None,
    ) -> Tensor:
        """As in `ContrastiveModule`; ``pictures`` are the encoder's vectors of the references, if there are any."""
        used: Any = encoder or self.encoder
        share = self._things(space, ids)[process_rank() :: process_count()]
        if space == "image":
            return used.embed(self.data.view(share), "image", self.eval_batch_size)
        rows = torch.searchsorted(self.data.table.anchors, share)
        references, _, texts = self.data.triplet_of(rows)
        if used is self.encoder and self.frozen:
            pictures = self.frozen["reference"]
        elif pictures is None:
            needed = references.unique()
            pictures = Store(used.embed(self.data.view(needed), "image", self.eval_batch_size), needed, "image")
        return self._composed_all(used, pictures, references, texts)

    @torch.no_grad()
    def _composed_all(self, encoder: ComposedEncoder, pictures: Store, references: Tensor, texts: list[str]) -> Tensor:
        """(n, d) queries on the CPU, in evaluation mode."""
        training, size = encoder.training, self.eval_batch_size
        encoder.eval()
        try:
            parts = [
                encoder.compose(
                    pictures.rows(references[start : start + size]).to(self.device), texts[start : start + size]
                ).float()
                for start in range(0, len(texts), size)
            ]
        finally:
            encoder.train(training)
        return torch.cat(parts).cpu() if parts else torch.empty(0, encoder.dim)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._encode_gallery(self.data.val_split)

    def on_test_epoch_start(self) -> None:
        self._encode_gallery(self.data.test_split)

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``load_composed(folder)`` reads."""
        self.encoder.save_pretrained(folder)

    def _encode_gallery(self, split: str) -> None:
        """Features of all pictures that the split needs; kept for as long as the picture encoder stays what it is."""
        data, key = self.data, f"{split} {self.encoder.fingerprint('image')}"
        if self._gallery is not None and self._gallery[0] is data and self._gallery[1] == key:
            return
        ids = data.split(split).pictures
        share = self.encoder.embed(data.view(ids[process_rank() :: process_count()]), "image", self.eval_batch_size)
        self._gallery = data, key, Store(in_order(share, len(ids), self.device), ids, "image")

    def _collect(self, batch: Batch, split: str) -> dict[str, Tensor]:
        assert self._gallery is not None
        inputs = batch.inputs["query"]
        features = self._gallery[2].rows(inputs["ids"].cpu()).to(self.device)
        vectors = self.encoder.compose(features, inputs["text"]).float()
        return {"ids": batch.items["query"]._need("ids"), "vectors": vectors}

    def _evaluate(self, split: str, prefix: str) -> None:
        data, wanted = self.data, self.data.split(split)
        assert self._gallery is not None
        raw = self._gallery[2]
        pictures = Store(F.normalize(raw.vectors, dim=1), raw.ids, "image")
        queries = F.normalize(self._vectors_of_all(split, wanted.ids, self.encoder.dim), dim=1)
        names = [data.names("query")[i] for i in wanted.ids.tolist()]
        self.measures = evaluate_cir(queries, names, wanted, pictures, data.protocol, self.device)
        size = len(names)
        self.log_dict({f"{prefix}/{name}": value for name, value in self.measures.means.items()}, batch_size=size)


def _store(given: str | Store) -> Store:
    return given if isinstance(given, Store) else Store.load(given)
