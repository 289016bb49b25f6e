"""What `hardneg audit` measures of a table, measured of the model while it trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hardneg.audit.measure import audit, came_back, hardness, hide, opinion, pair_products
from hardneg.modules.base import ContrastiveModule
from miners.base import TrainingTable, process_rank
from miners.draws import RowGenerator, generator_for
from miners.offline import Filter, MinedNegatives, mine
from miners.offline.candidates import known_products, reduce_lists
from miners.ragged import Ragged
from miners.store import Store

log = logging.getLogger(__name__)


class AuditNegatives(pl.Callback):
    """Log how hard and how false the negatives are that the model would give, and those that sources draw.

    The model as it is encodes a sample of the training queries and the corpus, and mines them. Of that table it logs
    ``audit/<band>`` (hardness, shares by how far below the query's lowest positive), ``audit/known_positives``,
    ``audit/equal_contents``, ``audit/without_negatives``, and ``audit/false_negative_rate`` with its exact 95 %
    interval, ``..._low`` and ``..._high``: a random tenth of the known positives is hidden, the same is mined again,
    and what comes back as a negative is counted. Where the module has a guide, ``audit/guide/<band>`` is its opinion of
    the same negatives. What a source draws in this epoch is scored by the model too: ``audit/<source>/<band>`` says how
    stale a table has become.

    It takes the time of one evaluation. Training is the same with it and without.

    Args:
        every_n_epochs: audit at the end of every so many epochs; None = not by epoch.
        every_n_steps: audit after every so many optimiser steps; None = not by step.
        num_negatives: negatives per query that are looked at.
        filters: rules of `miners.offline` that the negatives must pass, by class path; none = the nearest documents.
        search_depth: documents retrieved per query; None as in `miners.mine`.
        queries: training queries that are sampled; the same ones every time.
        hidden_share: share of the known positives that is hidden, in (0, 1).

    Attributes:
        report: the last audit, as `hardneg audit --json` has it.

    Raises:
        ValueError: no clock at all, or numbers out of range.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        num_negatives: int = 5,
        filters: Sequence[Filter] = (),
        search_depth: int | None = None,
        queries: int = 1000,
        hidden_share: float = 0.1,
    ) -> None:
        if every_n_epochs is None and every_n_steps is None:
            raise ValueError("AuditNegatives would never audit: set every_n_epochs or every_n_steps.")
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_steps", every_n_steps),
            ("num_negatives", num_negatives),
            ("queries", queries),
        ):
            if value is not None and value < 1:
                raise ValueError(f"AuditNegatives({name}={value}): wants at least 1.")
        if not 0 < hidden_share < 1:
            raise ValueError(f"AuditNegatives(hidden_share={hidden_share}): a share, so 0 < hidden_share < 1.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.num_negatives = num_negatives
        self.filters = tuple(filters)
        self.search_depth = search_depth
        self.queries = queries
        self.hidden_share = hidden_share
        self.report: dict[str, Any] = {}
        self._last_step = 0  # accumulated gradients show the same step several times

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._last_step:
            self._audit(trainer, pl_module)
        self._last_step = step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._audit(trainer, pl_module)

    def _audit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ContrastiveModule)
        table = pl_module.data.table
        order = torch.randperm(len(table), generator=generator_for(pl_module.seed))
        rows = order[: self.queries].sort().values  # (Q,)
        # every process encodes its share; the rest is done once, by the first
        queries, corpus = pl_module.embed("query", table.anchors[rows]), pl_module.embed("document")
        if process_rank() == 0:
            asked = Store(queries.rows(table.anchors[rows]), table.anchors[rows], "query")
            known = table.positives.select(rows)
            self.report = self.measure(asked, corpus, known, table, pl_module)
            self.report |= self._drawn(asked, corpus, known, rows, trainer, pl_module)
            values = flat(self.report)
            # straight to the loggers: what is logged through the module is written again at every later step
            for logger in trainer.loggers:
                logger.log_metrics({f"audit/{name}": value for name, value in values.items()}, trainer.global_step)
            log.info("audit at step %d: %s", trainer.global_step, ", ".join(f"{k} {v:.3g}" for k, v in values.items()))

    def measure(
        self, queries: Store, corpus: Store, known: Ragged, table: TrainingTable, pl_module: ContrastiveModule
    ) -> dict[str, Any]:
        """Mine and audit.

        Args:
            queries: Q sampled queries.
            corpus: all documents.
            known: Q lists of document ids.
            table: of the training set, for the documents' contents.
            pl_module: whose guide is asked, if it has one.
        """
        content = table.document_content
        if content is None:  # then a document is equal to itself alone
            content = torch.arange(int(corpus.ids.max()) + 1)
        mined = self._mine(queries, corpus, known)
        ids = {*mined.table["doc_id"].to_pylist(), *known.values.tolist()}
        report = audit(mined, {one: int(content[one]) for one in ids})
        left, query, document = hide(known, content, self.hidden_share, pl_module.seed)
        hidden = list(zip(queries.ids[query].tolist(), document.tolist(), strict=True))
        again = self._mine(queries, corpus, left)
        report["false_negatives"] = came_back(again, hidden, pl_module.seed)
        guides: Mapping[str, Store] = getattr(pl_module, "guide_stores", {})
        if guides:
            judge = guides["document"]
            pairs = (
                torch.tensor(mined.query_of).long(),
                judge.positions(torch.tensor(mined.table["doc_id"].to_numpy())),
            )
            positives = Ragged(known.offsets, judge.positions(known.values))
            old = torch.tensor(mined.table["score"].to_numpy())
            report["guide"] = opinion(guides["query"].rows(queries.ids), judge.vectors, pairs, positives, old)
        return report

    def _mine(self, queries: Store, corpus: Store, known: Ragged) -> MinedNegatives:
        asked = min(self.num_negatives, len(corpus))  # as many as there are in a tiny corpus
        return mine(queries, corpus, known, num_negatives=asked, search_depth=self.search_depth, filters=self.filters)

    def _drawn(
        self,
        queries: Store,
        corpus: Store,
        known: Ragged,
        rows: Tensor,
        trainer: pl.Trainer,
        pl_module: ContrastiveModule,
    ) -> dict[str, Any]:
        """Hardness, as the model sees it now, of what each source draws for the sampled rows in this epoch."""
        batches = pl_module.data.batches
        report: dict[str, Any] = {}
        first = known.values[known.offsets[:-1]]  # sources are told a positive; any will do here
        positives = Ragged(known.offsets, corpus.positions(known.values))
        lowest = reduce_lists(positives, known_products(queries.vectors, corpus, positives), "lowest")  # (Q,)
        for number, source in enumerate(batches.sources):
            generator = RowGenerator(batches.seed, trainer.current_epoch, stream=number + 1)
            draw = source.draw(rows, first, trainer.current_epoch, generator)
            query, slot = draw.usable.nonzero(as_tuple=True)
            document = corpus.positions(draw.ids[query, slot])
            score = pair_products(queries.vectors, corpus.vectors, query, document)
            report[draw.tag] = {"hardness": hardness(score.numpy(), lowest[query].numpy())}
        return report


def flat(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an audit that make sense as curves, under short names."""
    values: dict[str, float] = {}
    for who, part in {"": report, **report}.items():
        if isinstance(part, Mapping) and part.get("hardness"):
            prefix = f"{who}/" if who else ""
            values |= {
                prefix + band.replace("%", "percent").replace(" ", "_"): x for band, x in part["hardness"].items()
            }
    for name in ("known_positives", "equal_contents", "without_negatives"):
        values[name] = float(report[name])
    rate = report["false_negatives"]
    if rate["hidden"]:  # else no query has a second positive that could be hidden
        values["false_negative_rate"] = rate["rate"]
        values |= {f"false_negative_rate_{end}": rate[end] for end in ("low", "high")}
    return values
