"""The trainer of sentence-transformers with its own losses, as a peer in suites."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from hardneg.benchmark.meter import Meter
from hardneg.benchmark.peer import Peer


class SentenceTransformersPeer(Peer):
    """Train with ``SentenceTransformerTrainer`` and one of its losses, from the same overlays as our own fit.

    Taken over from the module: the encoder, the loss' temperature, learning rate, weight decay, warm-up, schedule and
    guide; from the data: batch size and (query, positive) pairs, one row for each pair. The rest is as the trainer has
    it by default: clipped gradients, weight decay on all weights but biases and norms.

    Args:
        loss: a class of ``sentence_transformers.losses``, such as MultipleNegativesRankingLoss or GISTEmbedLoss; the
            latter asks the module's guide.
        loss_arguments: more of its arguments.
        num_negatives: negatives per pair by ``mine_hard_negatives`` before training, with its relative margin of 0.05;
            0 trains on pairs. Pairs for which it finds too few are left out, as it does by itself.
        batch_sampler: of the trainer; "no_duplicates" is what it recommends for in-batch losses.

    Raises:
        ValueError: no such loss; a loss with a guide where the module has none.
    """

    def __init__(
        self,
        loss: str = "MultipleNegativesRankingLoss",
        loss_arguments: Mapping[str, Any] | None = None,
        num_negatives: int = 0,
        batch_sampler: str = "no_duplicates",
    ) -> None:
        from sentence_transformers.sentence_transformer import losses

        if not isinstance(getattr(losses, loss, None), type):
            raise ValueError(f"SentenceTransformersPeer(loss='{loss}'): sentence-transformers has no such loss.")
        if num_negatives < 0:
            raise ValueError(f"SentenceTransformersPeer(num_negatives={num_negatives}): wants at least 0.")
        self.loss = loss
        self.loss_arguments = dict(loss_arguments or {})
        self.num_negatives = num_negatives
        self.batch_sampler = batch_sampler

    def fit(self, module: Any, data: Any, steps: int, seed: int, meter: Meter, evaluate: Callable[[], None]) -> None:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        model = module.encoder.transformer
        prompts = {
            column: module.encoder.prompts[kind] for column, kind in (("query", "query"), ("answer", "document"))
        }
        rows = self._rows(data, model, prompts)
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=data.batch_size,
                learning_rate=module.learning_rate,
                weight_decay=module.weight_decay,
                warmup_steps=int(module.warmup_share * steps),
                lr_scheduler_type=module.schedule,
                batch_sampler=self.batch_sampler,
                prompts=_columns(prompts, rows.column_names),
                use_cpu=next(model.parameters()).device.type == "cpu",
                seed=seed,
                data_seed=seed,
                save_strategy="no",
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = SentenceTransformerTrainer(
                model,
                arguments,
                rows,
                loss=self._loss(module, model),
                callbacks=[_watch(meter, evaluate, data.batch_size)],
            )
            trainer.train()

    def _rows(self, data: Any, model: Any, prompts: Mapping[str, str | None]) -> Any:
        """Query and positive of each pair, and mined negatives where they are wanted."""
        from datasets import Dataset
        from sentence_transformers.util import mine_hard_negatives

        table = data.table
        queries = data.text_of(table.anchors[table.positives.row_of_value], "query")
        answers = data.text_of(table.positives.values, "document")
        pairs = Dataset.from_dict({"query": queries, "answer": answers})
        if not self.num_negatives:
            return pairs
        return mine_hard_negatives(
            pairs,
            model,
            corpus=list(data.corpus()[1]),
            num_negatives=self.num_negatives,
            relative_margin=0.05,
            query_prompt=prompts["query"],
            corpus_prompt=prompts["answer"],
            output_format="n-tuple",
            verbose=False,
        )

    def _loss(self, module: Any, model: Any) -> Any:
        import inspect

        from sentence_transformers.sentence_transformer import losses

        kind = getattr(losses, self.loss)
        takes = inspect.signature(kind).parameters
        temperature = float(module.loss.temperature)
        given = dict(self.loss_arguments)
        if "temperature" in takes:
            given.setdefault("temperature", temperature)
        elif "scale" in takes:
            given.setdefault("scale", 1 / temperature)
        if "guide" in takes:
            if module.guide is None:
                raise ValueError(f"{self.loss} asks a guide: give the chain an overlay with model.init_args.guide.")
            given["guide"] = module.guide.transformer
        return kind(model, **given)


def _columns(prompts: Mapping[str, str | None], columns: list[str]) -> dict[str, str] | None:
    """A prompt for each column that has one; negatives are answers."""
    found = {column: prompts["query" if column == "query" else "answer"] for column in columns}
    return {column: prompt for column, prompt in found.items() if prompt} or None


def _watch(meter: Meter, evaluate: Callable[[], None], batch_size: int) -> Any:
    """A callback that keeps the meter."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.ready()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.trained(state.global_step, batch_size, {})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:  # the trainer logs a step's loss when the step is over
                meter.trained(state.global_step, 0, {"loss": float(logs["loss"])})
                evaluate()

    return Watch()
