"""Fresh embeddings for batch miners while the trainer trains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hardneg.interop.sentence_transformers.batches import DATASET_NAME, READ_ROWS, MinerBatches, MinerBatchSampler
from hardneg.interop.sentence_transformers.chain import ChainLoss
from hardneg.modules.gather import joined
from miners.base import process_count, process_rank
from miners.store import Store
from miners.transaction import write_file

log = logging.getLogger(__name__)

STATE_FILE = "hardneg.pt"
GATHERED_ROWS = 1 << 16  # vectors of each process that travel at a time


class RefreshNegatives(TrainerCallback):
    """Encode the anchors with the model as it is, and hand them to the batch miners; keep both in checkpoints.

    Anchors go through the trainer's own collator, so that prompts, router tasks and lengths are those of training. Each
    process encodes its share. A resumed run goes on with the very order and embeddings that it had.

    Args:
        batches: what the training arguments have as ``batch_sampler``.
        every_n_epochs: refresh before every so many epochs, from ``start_epoch`` on; None = not by epoch.
        every_n_steps: refresh after every so many optimiser steps; rows not yet handed out are arranged anew. None =
            not by step.
        start_epoch: first epoch that gets fresh embeddings; before it miners do without.
        batch_size: anchors that are encoded at once.
        loss: a `ChainLoss`, or several by data set, whose queues and temperatures belong into the checkpoints.

    Raises:
        ValueError: no clock at all, or numbers below 1; a training without ``batches``.
    """

    def __init__(
        self,
        batches: MinerBatches,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        start_epoch: int = 0,
        batch_size: int = 64,
        loss: ChainLoss | Mapping[str, ChainLoss] | None = None,
    ) -> None:
        if every_n_epochs is None and every_n_steps is None:
            raise ValueError("RefreshNegatives would never refresh: set every_n_epochs or every_n_steps.")
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_steps", every_n_steps),
            ("batch_size", batch_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"RefreshNegatives({name}={value}): wants at least 1.")
        self.batches = batches
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.start_epoch = start_epoch
        self.batch_size = batch_size
        self.losses: dict[str, ChainLoss] = {"": loss} if isinstance(loss, ChainLoss) else dict(loss or {})
        self.seconds = 0.0  # that training waited for refreshes
        self.refreshes = 0
        self._samplers: list[MinerBatchSampler] = []
        self._collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
        self._vectors: list[Tensor] = []  # (A, d) of each data set, as last made
        self._made_at = -1  # step whose weights made them
        self._goes_on = -1  # epoch whose order came from a checkpoint

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.batches.refreshed = True  # not before: a callback that no trainer was given refreshes nothing

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.batches.refreshed = True
        self._samplers = samplers_of(train_dataloader)
        if not self._samplers:
            raise ValueError(
                "RefreshNegatives found no batches to refresh: set batch_sampler=batches in the training arguments, "
                "the very MinerBatches that the callback was given."
            )
        assert train_dataloader is not None
        self._collate, self._made_at, self._goes_on = train_dataloader.collate_fn, -1, -1
        for sampler in self._samplers:
            sampler.training = True
        if state.global_step:
            self._resume(args, state)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: SentenceTransformer | None = None,
        **kwargs: Any,
    ) -> None:
        epoch = int((state.epoch or 0.0) + 1e-6)
        for sampler in self._samplers:
            sampler.set_epoch(epoch)  # the trainer does so itself, but not in a resumed epoch of several processes
        for loss in self.losses.values():
            loss.epoch = epoch
        since = epoch - self.start_epoch
        due = self._made_at < 0 or (self.every_n_epochs is not None and since % self.every_n_epochs == 0)
        if since >= 0 and due and self._goes_on != epoch:
            self.refresh(model, state.global_step)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: SentenceTransformer | None = None,
        **kwargs: Any,
    ) -> None:
        begun = (state.epoch or 0.0) >= self.start_epoch
        if begun and self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self.refresh(model, state.global_step)

    def refresh(self, model: SentenceTransformer | None, step: int) -> None:
        """Encode the anchors of every data set now, unless these weights have done it already."""
        if model is None or step == self._made_at:
            return
        started = time.perf_counter()
        self._hand_over([self.embed(model, sampler) for sampler in self._samplers], step)
        self.refreshes += 1
        spent = time.perf_counter() - started
        self.seconds += spent
        anchors = sum(len(sampler.attach()) for sampler in self._samplers)
        log.info("refresh %d at step %d: %d anchors in %.1f s", self.refreshes, step, anchors, spent)

    def _hand_over(self, vectors: list[Tensor], step: int) -> None:
        for sampler, found in zip(self._samplers, vectors, strict=True):
            sampler.miner.refresh({"query": Store(found, space="query", version=step)})
        self._vectors, self._made_at = vectors, step

    @torch.no_grad()
    def embed(self, model: SentenceTransformer, sampler: MinerBatchSampler) -> Tensor:
        """(A, d) the anchors of a data set as the model sees them in training, on the CPU; alike on every process."""
        assert self._collate is not None
        rows, name = sampler.attach(), sampler.columns[0]
        mine = rows[process_rank() :: process_count()]
        training = model.training
        model.eval()
        parts: list[Tensor] = []
        try:
            for chunk in sampler.dataset.select(mine.tolist()).iter(READ_ROWS):
                # the dataset's name chooses the prompt; other columns are left out
                kept = [key for key in (name, DATASET_NAME) if key in chunk]
                things = [
                    dict(zip(kept, values, strict=True)) for values in zip(*(chunk[key] for key in kept), strict=True)
                ]
                order = sorted(range(len(things)), key=lambda at: -_length(things[at][name]))  # little padding
                found = []
                for start in range(0, len(order), self.batch_size):
                    batch = self._collate([things[at] for at in order[start : start + self.batch_size]])
                    batch.pop(DATASET_NAME, None)
                    features = {key.removeprefix(f"{name}_"): value for key, value in batch.items()}
                    found.append(model(batch_to_device(features, model.device))["sentence_embedding"].float().cpu())
                parts.append(torch.cat(found)[torch.tensor(order).argsort()])
        finally:
            model.train(training)
        share = torch.cat(parts) if parts else torch.empty(0, model.get_embedding_dimension() or 0)
        return _of_all(share, len(rows), model.device)

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint(args, state)
        if state.is_world_process_zero and folder.is_dir():
            kept = {
                "batches": [sampler.state_dict() for sampler in self._samplers],
                "losses": {name: loss.chain_state() for name, loss in self.losses.items()},
                "vectors": self._vectors,
                "made_at": self._made_at,
            }
            with write_file(folder / STATE_FILE) as file:
                torch.save(kept, file)

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        path = _checkpoint(args, state) / STATE_FILE
        if not path.is_file():
            log.warning(
                "%s is missing: the interrupted epoch is arranged anew, so that some of its rows come twice and others "
                "not at all. Resume from a folder in output_dir that was saved with this callback.",
                path,
            )
            return
        saved = torch.load(path, weights_only=True)
        if len(saved["batches"]) != len(self._samplers):
            raise ValueError(
                f"{path} was saved with {len(saved['batches'])} data sets, and this training has "
                f"{len(self._samplers)}. Resume with the same data."
            )
        if missing := sorted(self.losses.keys() - saved["losses"].keys()):
            raise ValueError(
                f"{path} was saved without the chain of the losses {missing}. Resume with RefreshNegatives(loss=None)."
            )
        if not all(isinstance(vectors, Tensor) for vectors in saved["vectors"] or ()):
            raise ValueError(f"{path}: its vectors must be tensors; a text would name a file. Do not resume it.")
        if saved["vectors"]:
            for sampler in self._samplers:
                sampler.attach()
            self._hand_over(saved["vectors"], saved["made_at"])
        for sampler, part in zip(self._samplers, saved["batches"], strict=True):
            sampler.load_state_dict(part)
        for name, loss in self.losses.items():
            loss.load_chain_state(saved["losses"][name])
        if any(part["sequence"] is not None for part in saved["batches"]):
            self._goes_on = saved["batches"][0]["epoch"]


def samplers_of(loader: DataLoader[Any] | None) -> list[MinerBatchSampler]:
    """Our batch samplers in a trainer's loader, below what it wraps round them, in the order of the data sets."""
    pending: list[Any] = [getattr(loader, "batch_sampler", None)]
    found = []
    while pending:
        sampler = pending.pop(0)
        if isinstance(sampler, MinerBatchSampler):
            found.append(sampler)
        else:
            pending += getattr(sampler, "batch_samplers", None) or []
            pending += [sampler.batch_sampler] if hasattr(sampler, "batch_sampler") else []
    return found


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the trainer's checkpoint of this step."""
    given = args.resume_from_checkpoint
    if isinstance(given, str) and Path(given).name == f"checkpoint-{state.global_step}" and Path(given).is_dir():
        return Path(given)
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _length(thing: Any) -> int:
    return len(thing) if isinstance(thing, str) else 0


def _of_all(share: Tensor, number: int, device: torch.device) -> Tensor:
    """(number, d) the shares of all processes, every W-th row each."""
    if process_count() == 1:
        return share
    out = torch.empty(number, share.shape[1])
    mine = torch.arange(number)[process_rank() :: process_count()]
    for start in range(0, -(-number // process_count()), GATHERED_ROWS):
        rows = slice(start, start + GATHERED_ROWS)
        found = joined({"at": mine[rows].to(device), "vectors": share[rows].to(device)})
        out[found["at"].cpu()] = found["vectors"].cpu()
    return out
