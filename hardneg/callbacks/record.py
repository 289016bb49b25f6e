"""Remember, for the report, which negatives taught the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from miners.pool import NegativePool


class RecordNegatives(pl.Callback):
    """Write the hardest negatives of a few anchors to ``negatives.jsonl`` in the run's folder: first and n-th steps.

    One line per anchor: step, direction, anchor, positive and negatives as text, each with its score, the origin of its
    block, and the "thing" that it is, as SPACE/ID. `hardneg.report` reads it.

    Args:
        every_n_steps: steps between records.
        anchors: how many anchors of a step.
        k: how many negatives of each.
        file: name of the file.
    """

    def __init__(self, every_n_steps: int = 10, anchors: int = 4, k: int = 5, file: str = "negatives.jsonl") -> None:
        if min(every_n_steps, anchors, k) < 1:
            raise ValueError(f"RecordNegatives(every_n_steps={every_n_steps}, anchors={anchors}, k={k}): at least 1.")
        self.every_n_steps = every_n_steps
        self.anchors = anchors
        self.k = k
        self.file = file

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != 1 and trainer.global_step % self.every_n_steps:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # every process must ask: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / self.file).open("a") as out:
            for pool in pl_module.finished:  # type: ignore[union-attr]
                for record in self._records(pool, trainer.datamodule):  # type: ignore[attr-defined]
                    step = {"step": trainer.global_step, "epoch": trainer.current_epoch, "direction": pool.direction}
                    out.write(json.dumps(step | record, ensure_ascii=False) + "\n")

    @torch.no_grad()
    def _records(self, pool: NegativePool, data: Any) -> list[dict[str, Any]]:
        def texts(ids: list[int], space: str) -> list[str | None]:
            known = [i for i in ids if i >= 0]
            found = dict(zip(known, data.text_of(known, space), strict=True)) if known else {}
            return [found.get(i) for i in ids]

        scores, valid, where = pool.hardest(self.k)
        positive = pool.scores(pool.positives)
        chosen = pool.usable_of(pool.positives).byte().argmax(1).tolist()  # the first of each anchor's own
        anchors, positives = pool.anchors, pool.positives.items
        out = []
        for row in range(min(self.anchors, len(pool))):
            negatives = []
            for score, there, (number, column) in zip(
                scores[row].tolist(), valid[row].tolist(), where[row].tolist(), strict=True
            ):
                block = pool.negatives[number]
                if not there or block.items.ids is None:
                    continue
                ids = block.items.ids
                named = int(ids[column] if ids.ndim == 1 else ids[row, column])
                if named < 0:  # made for this batch: no data set has a text of it
                    continue
                (text,) = texts([named], block.items.space)
                thing = f"{block.items.space}/{named}"
                negatives.append({"text": text, "score": score, "origin": block.origin, "thing": thing})
            assert anchors.ids is not None
            assert positives.ids is not None
            column = chosen[row]
            asked = int(anchors.ids[row])
            own = int(positives.ids[column] if positives.ids.ndim == 1 else positives.ids[row, column])
            out.append(
                {
                    "anchor": texts([asked], anchors.space)[0],
                    "thing": f"{anchors.space}/{asked}",
                    "positive": {
                        "text": texts([own], positives.space)[0],
                        "score": float(positive[row, column]),
                        "thing": f"{positives.space}/{own}",
                    },
                    "negatives": negatives,
                }
            )
        return out
