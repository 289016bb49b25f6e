"""Pictures and captions in one space, contrasted both ways, as CLIP does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from datamodules.captions import true_captions
from hardneg.encoders.base import Encoder
from hardneg.losses import PoolLoss
from hardneg.metrics.compositional import chosen_pairs, compositional_scores
from hardneg.metrics.retrieval import DEPTH, RetrievalMeasures
from hardneg.modules.evaluated import EvaluatedModule
from hardneg.modules.gather import in_order
from miners.base import PoolMiner, process_count, process_rank
from miners.pool import Block, Items, NegativePool, StepContext, among
from miners.ragged import Ragged
from miners.store import Store

PAIRS = (("image", "caption"), ("caption", "image"))
RANKED = 1024  # rows that are ranked at a time


class CaptionsModule(EvaluatedModule):
    """Train an encoder of pictures and one of texts so that true pairs lie together.

    Each direction has its own pool: an image is pushed away from captions, the batch's and those that were made for it,
    and a caption from images. Validation and test rank all captions of the split for each picture and the reverse, and
    score sets of minimal pairs (`hardneg.metrics.compositional`).

    Args:
        image_encoder, text_encoder: with vectors of the same length.
        directions: "image_to_caption", "caption_to_image", or both.
        loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size: as in `ContrastiveModule`.
        eval_batch_size: things per batch in evaluation.

    Raises:
        ValueError: vectors of two lengths, unknown directions.

    Source:
        CLIP, arXiv 2103.00020, section 2.3; made negatives: MMCLIP, arXiv 2505.20152.
    """

    def __init__(
        self,
        image_encoder: Encoder,
        text_encoder: Encoder,
        directions: Sequence[str] = ("image_to_caption", "caption_to_image"),
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        eval_batch_size: int = 128,
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size)
        known = ["_to_".join(pair) for pair in PAIRS]
        if not directions or set(directions) - set(known):
            raise ValueError(f"CaptionsModule(directions={list(directions)}): wants {' or '.join(known)}, or both.")
        if image_encoder.dim != text_encoder.dim:
            raise ValueError(
                f"CaptionsModule: pictures have vectors of {image_encoder.dim} dims, texts of {text_encoder.dim}. Set "
                "model.init_args.image_encoder.init_args.dim to the texts'."
            )
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.directions = tuple(directions)
        self.eval_batch_size = eval_batch_size
        self.provides = frozenset({"embeddings", "sides", "own_positive", "drawn"})
        self.measures: RetrievalMeasures | None = None
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        return {
            side: replace(items, embeddings=self._encoder(items.space)(batch.inputs[side], _kind(items.space)))
            for side, items in batch.items.items()
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        out = []
        for left, right in PAIRS:
            if (direction := f"{left}_to_{right}") not in self.directions:
                continue
            roles = {"anchors": sides[left], "positives": sides[right]}
            if (drawn := f"drawn {right}") in sides:
                roles["drawn"] = sides[drawn]
            out.append(
                NegativePool(
                    anchors=sides[left].take(own),
                    positives=Block(_one_each(sides[right].take(own)), "positive"),
                    temperature=self.loss.temperature,
                    direction=direction,
                    sides=roles,
                    known=batch.known.select(own),  # captions and pictures: no id is both
                    context=context,
                )
            )
        return out

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        ids = self._things(space, ids)
        things = self.data.take(ids[process_rank() :: process_count()], space)
        return (encoder or self._encoder(space)).embed(things, _kind(space), self.eval_batch_size)  # type: ignore[operator]

    def store_of(self, space: str, share: Tensor, version: int, ids: Tensor | None = None) -> Store:
        ids = self._things(space, ids)
        vectors = torch.nn.functional.normalize(in_order(share, len(ids), self.device), dim=1)
        return Store(vectors, ids, space, key=self._encoder(space).fingerprint(_kind(space)), version=version)

    def save_pretrained(self, folder: str) -> None:
        """Write both encoders, below ``image`` and ``text``."""
        self.image_encoder.save_pretrained(Path(folder) / "image")
        self.text_encoder.save_pretrained(Path(folder) / "text")

    def _encoder(self, space: str) -> Encoder:
        return self.image_encoder if space == "image" else self.text_encoder

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, split: str, data: Any) -> RetrievalMeasures:
        """Rank and score all pairs of a split."""
        rows, names = data.queries(split)
        pictures = self.embed("image", data.picture_of[rows].unique()).rows(data.picture_of[rows])
        captions = self.embed("caption", rows).rows(rows)
        true = true_captions(data.content[rows], data.picture_of[rows])
        found = {
            "R@1 image to caption": best_is_true(pictures, captions, true),
            "R@1 caption to image": best_is_true(
                captions, pictures, Ragged.from_pairs(true.values, true.row_of_value, len(rows))
            ),
        }
        by_query = {name: dict(zip(names, of.tolist(), strict=True)) for name, of in found.items()}
        scored = chosen_pairs(data.families[rows])
        for name, of in compositional_scores(pictures, captions, data.families[rows]).items():
            by_query[name] = {names[at]: value for at, value in zip(scored.tolist(), of.tolist(), strict=True)}
        by_query = {name: of for name, of in by_query.items() if of}
        means = {name: sum(of.values()) / len(of) for name, of in by_query.items()}
        best = [(part @ captions.T).topk(min(DEPTH, len(rows)), dim=1) for part in pictures.split(RANKED)]
        scores, places = (torch.cat([one[at] for one in best]) for at in (0, 1))
        return RetrievalMeasures(means, by_query, scores, rows[places])

    def _evaluate(self, split: str, prefix: str) -> None:
        self.measures = self.evaluate(split, self.data)
        self.log_dict({f"{prefix}/{name}": value for name, value in self.measures.means.items()})


def best_is_true(left: Tensor, right: Tensor, true: Ragged) -> Tensor:
    """(N,) 1 where the best of all N on the right is on the row's list of true ones; a tie with another is wrong."""
    out = []
    for rows in torch.arange(len(left)).split(RANKED):
        scores = left[rows] @ right.T
        same = among(torch.arange(len(right)), true.select(rows))
        others = scores.where(~same, -2.0).amax(1)  # cosines are at least -1
        out.append((scores.where(same, -2.0).amax(1) > others).double())
    return torch.cat(out) if out else torch.zeros(0, dtype=torch.float64)


def _kind(space: str) -> str:
    return "image" if space == "image" else "document"


def _one_each(items: Items) -> Items:
    """Shared items (B, ...) as one positive per anchor: embeddings (B, 1, d), ids (B, 1)."""
    wide = {name: part[:, None] for name, part in items.tensors().items() if name not in ("labels", "norms", "rows")}
    return replace(items, labels=None, norms=None, rows=None, **wide)  # type: ignore[arg-type]
