"""Fresh embeddings for whoever mines with them."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from hardneg.modules.base import ContrastiveModule
from miners.base import process_count, process_rank
from miners.draws import generator_for
from miners.store import Store

log = logging.getLogger(__name__)


class RefreshNegatives(pl.Callback):
    """Re-encode, and hand the stores to batch miners, sources and pool miners.

    Any of three clocks: epochs, steps, or measured staleness. Each process encodes its share. A refresh by epochs is
    made when the epoch's first batch is drawn, which loaders do ahead of time.

    A resumed run goes on with the embeddings that it had: they are in the checkpoint, or, with ``folder``, beside it.

    Args:
        every_n_epochs: refresh before every so many epochs, from ``start_epoch`` on; None = not by epoch.
        every_n_steps: refresh after every so many optimiser steps; None = not by step.
        min_overlap: refresh when the overlap falls below this share, in (0, 1]: of a probe's ``k`` nearest neighbours
            in the store, how many does the current encoder find among the same things? None = not measured.
        check_every_n_steps: steps between two measurements.
        probe: things of each space that are encoded to measure.
        k: neighbours compared.
        spaces: what to encode: ["query"] for NGAME, ["query", "document"] for mining. Neighbours of the first space are
            looked for in the last.
        start_epoch: first epoch that gets fresh embeddings; before it miners do without.
        asynchronous_steps: build the next version in a thread, from a copy of the encoder, while so many steps are
            trained with the last one, and wait for it then; a fixed number, so that a run can be repeated. 0 = wait at
            once. Refreshes by epoch are never asynchronous: their epoch begins with them.
        folder: where versions are written, one folder per space, to be read memory-mapped; for embeddings too large for
            memory and checkpoints. Only the last version is kept, and checkpoints older than it cannot be resumed. None
            keeps them in memory and in each checkpoint.

    Raises:
        ValueError: no clock at all, or numbers out of range.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        min_overlap: float | None = None,
        check_every_n_steps: int = 50,
        probe: int = 512,
        k: int = 10,
        spaces: Sequence[str] = ("query",),
        start_epoch: int = 0,
        asynchronous_steps: int = 0,
        folder: str | None = None,
    ) -> None:
        if every_n_epochs is None and every_n_steps is None and min_overlap is None:
            raise ValueError("RefreshNegatives would never refresh: set every_n_epochs, every_n_steps or min_overlap.")
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("every_n_steps", every_n_steps, 1),
            ("check_every_n_steps", check_every_n_steps, 1),
            ("k", k, 1),
            ("probe", probe, k + 1),
            ("asynchronous_steps", asynchronous_steps, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"RefreshNegatives({name}={value}): wants at least {least}.")
        if min_overlap is not None and not 0 < min_overlap <= 1:
            raise ValueError(f"RefreshNegatives(min_overlap={min_overlap}): a share, so 0 < min_overlap <= 1.")
        if not spaces:
            raise ValueError("RefreshNegatives(spaces=[]) would encode nothing.")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.min_overlap = min_overlap
        self.check_every_n_steps = check_every_n_steps
        self.probe = probe
        self.k = k
        self.spaces = tuple(spaces)
        self.start_epoch = start_epoch
        self.asynchronous_steps = asynchronous_steps
        self.folder = folder
        self.seconds = 0.0  # that training waited for refreshes
        self.refreshes = 0
        self.overlap: float | None = None  # as last measured
        self._stores: dict[str, Store] = {}
        self._made_at = 0  # step whose weights made the stores
        self._epoch = -1  # last epoch that asked
        self._last_step = 0  # accumulated gradients show the same step several times
        self._build: _Build | None = None

    # ---- clocks ----------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":  # another fit has other weights; a checkpoint is read after this
            self._stores, self._epoch, self._last_step, self._build = {}, -1, 0, None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._stores:  # resumed: the same embeddings, and nobody arranges anything anew
            self._hand_over(trainer, pl_module)
        self._hook: Callable[[int], None] = partial(self._before_epoch, trainer, pl_module)
        trainer.datamodule.batches.before_epoch.append(self._hook)  # type: ignore[attr-defined]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        batches = getattr(getattr(trainer, "datamodule", None), "batches", None)
        if batches is not None and getattr(self, "_hook", None) in batches.before_epoch:
            batches.before_epoch.remove(self._hook)
        self._build = None

    def _before_epoch(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        since, asked = epoch - self.start_epoch, self._epoch
        self._epoch = epoch
        by_epoch = self.every_n_epochs is not None and since % self.every_n_epochs == 0 and asked != epoch
        if since >= 0 and (by_epoch or not self._stores):
            self.refresh(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step or not self._stores:
            return
        self._last_step = step
        if self._build is not None and step >= self._build.due:
            self._finish(trainer, pl_module)
        if self._build is None and self._is_due(step, pl_module):
            if self.asynchronous_steps:
                self._build = _Build.start(pl_module, self.spaces, step, step + self.asynchronous_steps)
            else:
                self.refresh(trainer, pl_module)
        pl_module.log("refresh/version", float(self.refreshes))
        pl_module.log("refresh/age", float(step - self._made_at))

    def _is_due(self, step: int, pl_module: pl.LightningModule) -> bool:
        if self.every_n_steps is not None and step % self.every_n_steps == 0:
            return True
        if self.min_overlap is None or step % self.check_every_n_steps:
            return False
        self.overlap = self.measure(pl_module)
        pl_module.log("refresh/overlap", self.overlap)
        return self.overlap < self.min_overlap

    def measure(self, pl_module: pl.LightningModule) -> float:
        """The share of the probe's k nearest neighbours in the stores that the current encoder finds too."""
        assert isinstance(pl_module, ContrastiveModule)
        old, new = [], []
        for number, space in enumerate(dict.fromkeys((self.spaces[0], self.spaces[-1]))):
            store = self._stores[space]
            chosen = torch.randperm(len(store), generator=generator_for(pl_module.seed, number))[: self.probe]
            ids = store.ids[chosen.sort().values]
            old.append(store.rows(ids))
            new.append(pl_module.embed(space, ids).rows(ids))
        return overlap_at_k((old[0], old[-1]), (new[0], new[-1]), self.k)

    # ---- refreshes -------------------------------------------------------------------------------------------------

    def refresh(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode ``spaces`` now and hand them over."""
        assert isinstance(pl_module, ContrastiveModule)
        started = time.perf_counter()
        self._build = None  # older than what comes now
        self._take({space: pl_module.embed(space) for space in self.spaces}, trainer.global_step)
        self._hand_over(trainer, pl_module)
        self._report(trainer, time.perf_counter() - started)

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the version that a thread builds, and hand it over."""
        assert isinstance(pl_module, ContrastiveModule)
        assert self._build is not None
        started, build = time.perf_counter(), self._build
        self._build = None
        self._take(build.stores(pl_module), build.began)
        self._hand_over(trainer, pl_module)
        self._report(trainer, time.perf_counter() - started)

    def _take(self, stores: Mapping[str, Store], made_at: int) -> None:
        self.refreshes += 1
        self._made_at = made_at
        self._stores = dict(stores)
        if self.folder is not None:
            for space, store in stores.items():
                if process_rank() == 0:
                    store.save(Path(self.folder) / space)
                if process_count() > 1:
                    torch.distributed.barrier()
                self._stores[space] = Store.load(Path(self.folder) / space)

    def _hand_over(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for part in (data.batches.miner, *data.batches.sources):
            part.refresh(self._stores)
        assert isinstance(pl_module, ContrastiveModule)
        for direction in pl_module.directions:
            for miner in pl_module.chain_of(direction):
                miner.refresh(self._stores)

    def _report(self, trainer: pl.Trainer, spent: float) -> None:
        self.seconds += spent
        sizes = ", ".join(f"{len(store)} of '{space}'" for space, store in self._stores.items())
        log.info(
            "refresh %d at step %d, of the weights of step %d: %s, waited %.1f s",
            self.refreshes,
            trainer.global_step,
            self._made_at,
            sizes,
            spent,
        )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        parts = ("refreshes", "seconds", "overlap", "_made_at", "_epoch", "_last_step")
        state: dict[str, Any] = {name: getattr(self, name) for name in parts}
        if self.folder is None:
            state["stores"] = {space: _tensors(store) for space, store in self._stores.items()}
        if (
            self._build is not None
        ):  # its weights are gone when the run goes on: the checkpoint waits for what they make
            build = self._build
            state["build"] = {"began": build.began, "due": build.due, "shares": _of_all(build.wait())}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("refreshes", "seconds", "overlap", "_made_at", "_epoch", "_last_step"):
            setattr(self, name, state_dict[name])
        if self.folder is None:
            self._stores = {space: _store(parts) for space, parts in state_dict["stores"].items()}
        elif self.refreshes:
            self._stores = {space: Store.load(Path(self.folder) / space) for space in self.spaces}
            for space, store in self._stores.items():
                if store.version != self._made_at:
                    raise ValueError(
                        f"RefreshNegatives(folder='{self.folder}'): '{space}' holds the version of step "
                        f"{store.version} and the checkpoint was trained with that of step {self._made_at}. Resume a "
                        "later checkpoint."
                    )
        if "build" in state_dict:
            build = state_dict["build"]
            self._build = _Build(build["began"], build["due"], shares=build["shares"][process_rank()])


@dataclass
class _Build:
    """The next version in the making: each process' share, encoded in a thread by a copy of the encoder."""

    began: int
    due: int
    shares: dict[str, Tensor] = field(default_factory=dict)
    future: Future[dict[str, Tensor]] | None = None

    @classmethod
    def start(cls, pl_module: Any, spaces: Sequence[str], began: int, due: int) -> _Build:
        encoder = copy.deepcopy(pl_module.encoder).eval()
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refresh")

        def encode() -> dict[str, Tensor]:  # no message to another process: those are the main thread's
            return {space: pl_module.embed_share(space, encoder=encoder) for space in spaces}

        future = pool.submit(encode)
        pool.shutdown(wait=False)
        return cls(began, due, future=future)

    def wait(self) -> dict[str, Tensor]:
        if self.future is not None:
            self.shares, self.future = self.future.result(), None
        return self.shares

    def stores(self, pl_module: ContrastiveModule) -> dict[str, Store]:
        return {space: pl_module.store_of(space, share, self.began) for space, share in self.wait().items()}


def overlap_at_k(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], k: int) -> float:
    """Mean share of the k nearest neighbours that two encodings of the same things agree on.

    Args:
        old, new: (Q, d) whose neighbours, (M, d) among whom; the same tensor twice compares things with each other.
    """

    def nearest(left: Tensor, right: Tensor) -> Tensor:
        scores = left @ right.T
        if left is right:
            scores.fill_diagonal_(-torch.inf)
        return scores.topk(min(k, scores.shape[1])).indices  # (Q, k)

    before, now = nearest(*old), nearest(*new)
    both = torch.cat([before, now], dim=1).sort(dim=1).values
    return float((both[:, 1:] == both[:, :-1]).sum(1).float().mean() / before.shape[1])


def _tensors(store: Store) -> dict[str, Any]:
    """What makes the same store again: tensors and plain values."""
    return {
        "vectors": store.vectors,
        "ids": None if store.counted else store.ids,
        "space": store.space,
        "key": store.key,
        "version": store.version,
    }


def _store(parts: Mapping[str, Any]) -> Store:
    """What `_tensors` took apart.

    Raises:
        ValueError: vectors that are no tensor: a text would name a file.
    """
    if not isinstance(parts.get("vectors"), Tensor):
        raise ValueError(
            f"the checkpoint's vectors of a store must be a tensor, got {type(parts.get('vectors')).__name__}. Do not "
            "resume it."
        )
    return Store(**parts)


def _of_all(shares: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The shares of every process, in the order of ranks."""
    if process_count() == 1:
        return [dict(shares)]
    everyone: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(everyone, dict(shares))
    return everyone
