"""Cross-view geo-localisation: which of these tiles shows the place where this picture was taken?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.geo import places_of
from hardneg.encoders.base import Encoder
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.metrics.geo import GeoMeasures, evaluate_geo
from hardneg.modules.pictures import encode_batches
from hardneg.modules.retrieval import Direction, RetrievalModule
from miners.base import process_count, process_rank
from miners.store import Store

log = logging.getLogger(__name__)

BOTH: tuple[Direction, Direction] = ("query_to_document", "document_to_query")


class GeoModule(RetrievalModule):
    """Train an encoder of views so that those of one place lie together: Sample4Geo.

    The loss is symmetric: queries among references and references among queries, half each. What is hard is who meets
    in a batch (`miners.NeighbourBatches`). References that nobody asks for count in every measure.

    Args:
        encoder: an `ImageEncoder` for both views, as published, or `Towers` of two.
        loss: None = InfoNCE with a learned temperature that begins at 0.07, and label smoothing of 0.1, the paper's.
        directions: None = both.
        percent_rule: of R@1%: "floor", or "round" as University-1652's script; see `hardneg.metrics.geo.top_percent`.
        learning_rate, weight_decay, eval_batch_size, common: miners, similarity, guide, allow_same_guide, warmup_share,
            schedule, seed, chunk_size, momentum, frozen; see `RetrievalModule`.

    Source:
        Sample4Geo, arXiv 2303.11851. Differs: the temperature has no weight decay, and its inverse stays below 100; the
        learning rate falls along a line, not a cosine; pairs are mirrored and turned, and nothing else is done to them
        (published: colours, blur, dropped patches too); measures are of the last epoch, where the published script
        picks the best on the test set.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: PoolLoss | None = None,
        directions: Sequence[Direction] | None = None,
        percent_rule: Literal["floor", "round"] = "floor",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(
            encoder,
            InfoNCE(0.07, learn_temperature=True, label_smoothing=0.1) if loss is None else loss,
            directions=BOTH if directions is None else directions,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **common,
        )
        if percent_rule not in ("floor", "round"):
            raise ValueError(f"GeoModule(percent_rule='{percent_rule}'): wants 'floor' or 'round'.")
        self.percent_rule = percent_rule
        self.measures: GeoMeasures | None = None  # type: ignore[assignment]

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder; the folder's hardneg.yaml says what reads it."""
        self.encoder.save_pretrained(folder)

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        if space in self.frozen:
            return torch.empty(0)
        wanted = self._things(space, ids)[process_rank() :: process_count()]
        used: Any = encoder or self.encoder
        batches = self.data.pictures_of(wanted, space)
        return encode_batches(lambda pictures: used(pictures, space), used, batches, used.dim)

    def _evaluate(self, split: str, prefix: str) -> None:
        found = self.data.split(split)
        references: Store = self.embed("document", found.references)
        ids, queries = self._collected(split)
        semi, names = found.semi_positives, self.data.names("query")
        self.measures = evaluate_geo(
            queries,
            [names[i] for i in ids.tolist()],
            references,
            found.positives,
            semi,
            places_of(found),
            self.percent_rule,
            self.device,
        )
        log.info(
            "split '%s': %d queries, %d references, %d of them nobody's; ties in favour of a query",
            split,
            len(ids),
            self.measures.references,
            self.measures.distractors,
        )
        self.log_dict({f"{prefix}/{name}": value for name, value in self.measures.means.items()}, batch_size=len(ids))
