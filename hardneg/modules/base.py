"""The one training step that all families share."""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules.batch import Batch
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.modules.chunks import encode_in_chunks
from hardneg.modules.gather import added, gather, in_order, reduce
from miners.base import PoolMiner, process_count, process_rank
from miners.draws import generator_for
from miners.in_batch import InBatch
from miners.pool import ABILITIES, Items, NegativePool, StepContext
from miners.store import Store

log = logging.getLogger(__name__)


class ContrastiveModule(pl.LightningModule, ABC):
    """A pool of negatives flows through a chain of miners into a loss.

    A family writes ``encode``, ``pools`` and how it is evaluated, and declares what it ``provides``. It knows no miner,
    and no miner knows it: what a chain or a loss needs is compared with what is provided, before training.

    Args:
        loss: a `hardneg.losses` loss; None = InfoNCE at its default temperature.
        miners: the chain, run in this order for each direction; each direction has its own copy. None = [InBatch()].
        learning_rate: peak of AdamW.
        weight_decay: of matrices; biases, norms and temperatures have none.
        warmup_share: share of all steps over which the learning rate rises, in [0, 1).
        schedule: "linear" falls to 0 at the last step, "constant" stays.
        seed: of the draws that miners make inside a step, and of dropout: torch's own generators are seeded before each
            batch by (seed, batches trained so far, process), so that a resumed run draws what the unbroken one draws.
        chunk_size: gradient caching: so many things of a side go through the encoder at a time, and once more in
            backward; the same gradients, with the activations of one chunk in memory. None encodes all at once.
        momentum: MoCo's: candidates are encoded without gradient by a copy of the encoder that follows it as
            ``momentum x copy + (1 - momentum) x encoder`` before each step, in (0, 1); 0.999 is usual. None: candidates
            come from the encoder itself, with gradient.

    Raises:
        ValueError: a chain or loss needs what neither the family nor an earlier miner provides.
    """

    provides: frozenset[str] = frozenset()
    directions: Sequence[str] = ("query_to_document",)

    def __init__(
        self,
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_share: float = 0.1,
        schedule: str = "linear",
        seed: int = 0,
        chunk_size: int | None = None,
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_share < 1:
            raise ValueError(f"warmup_share={warmup_share}: a share of all steps, so 0 <= warmup_share < 1.")
        if schedule not in ("linear", "constant"):
            raise ValueError(f"schedule='{schedule}': wants 'linear' or 'constant'.")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: wants at least 1, or null for no gradient caching.")
        if momentum is not None and not 0 < momentum < 1:
            raise ValueError(f"momentum={momentum}: a share of the slow copy that stays, so 0 < momentum < 1, or null.")
        self.loss = loss or InfoNCE()
        self.chains = nn.ModuleDict()
        self._chain = [InBatch()] if miners is None else list(miners)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_share = warmup_share
        self.schedule = schedule
        self.seed = seed
        self.chunk_size = chunk_size
        self.momentum = momentum
        self.slow: AveragedModel | None = None
        self.batches_trained = 0
        self.finished: list[NegativePool] = []  # this step's pools, from forward to the end of the step
        self._rows: Tensor | None = None  # (G,) training rows of this step
        self._followed = -1  # the last optimiser step after which the slow copy was updated
        self._warned = False

    # ---- what a family writes --------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, batch: Batch) -> dict[str, Items]:
        """Items of each side of this process' batch, with embeddings.

        Each side by itself: gradient caching hands over a part of one side at a time. Candidates of a module with
        ``momentum`` come from ``self.slow``, without gradient.
        """

    @abstractmethod
    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        """One pool per direction, with no negatives yet, for this process' anchors ``context.own``.

        ``sides`` and ``batch`` (``known`` and ``rows``) are those of all processes.
        """

    @abstractmethod
    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        """(n, d) vectors, on the CPU, of this process' share of a space: every W-th thing, without gradient.

        Sends nothing to other processes, so that a thread may call it with a copy of the encoder.

        Args:
            encoder: None = the module's own.
            ids: some things of the space; None = all that training meets.
        """

    def store_of(self, space: str, share: Tensor, version: int, ids: Tensor | None = None) -> Store:
        """The store, of unit length, that the shares of all processes make; every process calls it."""
        ids, encoder = self._things(space, ids), cast(Any, self.encoder)
        vectors = F.normalize(in_order(share, len(ids), self.device), dim=1)
        return Store(vectors, ids, space, key=encoder.fingerprint(space), version=version)

    def _things(self, space: str, ids: Tensor | None) -> Tensor:
        """Which things a store of ``space`` holds: some, or None = all that training meets."""
        return self.data.everything(space)[0] if ids is None else ids

    def embed(self, space: str, ids: Tensor | None = None) -> Store:
        """Encode things of ``space`` without gradient, each process its share, for a refresh."""
        return self.store_of(space, self.embed_share(space, ids=ids), self.global_step, ids)

    @property
    def data(self) -> Any:
        """The data module of the running fit or evaluation."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def chain_of(self, direction: str) -> Sequence[PoolMiner]:
        """The miners of one direction, in their order."""
        return self.chains[direction]  # type: ignore[return-value]

    # ---- what all families share -----------------------------------------------------------------------------------

    def use_miners(self) -> None:
        """Give each direction its copy of the chain, and check it. Families call it at the end of their constructor."""
        if self.momentum is not None:
            self.slow = AveragedModel(self.encoder, multi_avg_fn=get_ema_multi_avg_fn(self.momentum))  # type: ignore[arg-type]
            self.slow.requires_grad_(False)
        check_chain(self._chain, self.loss, self.provides)
        for direction in self.directions:
            self.chains[direction] = nn.ModuleList(copy.deepcopy(self._chain))

    @final
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        torch.manual_seed(generator_for(self.seed, self.batches_trained, process_rank()).initial_seed())
        self._follow()
        own_rows = len(batch)
        encoded = (
            self.encode(batch)
            if self.chunk_size is None
            else encode_in_chunks(self.encode, batch, self.chunk_size, self.device)
        )
        sides, batch, own = gather(encoded, batch)
        context = StepContext(
            self.current_epoch, self.batches_trained, True, self.seed, own.start, len(batch), own_rows
        )
        total, self.finished, self._rows = torch.zeros((), device=self.device), [], batch.rows
        for pool in self.pools(sides, batch, context):
            chain = self.chain_of(pool.direction)
            for miner in chain:
                pool = miner(pool)
            loss = reduce(*self.loss(pool)) + self._auxiliary(chain, pool)
            total = total + loss / len(self.directions)
            self.finished.append(pool)
        self._log_step(total)
        return total

    def on_after_backward(self) -> None:
        self.batches_trained += 1
        for pool in self.finished:
            for miner in self.chain_of(pool.direction):
                miner.commit(pool)
        # here and not when the batch ends: checkpoints are written before a module hears of that
        batches: Any = getattr(self.trainer.train_dataloader, "batch_sampler", None)
        if hasattr(batches, "trained") and self.finished:
            anchors: Any = self.finished[0].sides.get("anchors", self.finished[0].anchors)
            batches.trained(self._rows, anchors.detach())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.finished = []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hardneg"] = {"batches_trained": self.batches_trained, "followed": self._followed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("hardneg", {})
        self.batches_trained = state.get("batches_trained", 0)
        self._followed = state.get("followed", -1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            lr=self.learning_rate,
            fused=True,  # fifteen times faster than the default on a CPU, for a model whose half is a word table
        )
        steps = self._total_steps()
        warmup = int(self.warmup_share * steps)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 1.0 if self.schedule == "constant" else max(0.0, (steps - step) / max(steps - warmup, 1))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is given: matrices decay, the rest does not; miners' models may have their own rates."""
        groups, taken = [], set()
        for chain in self.chains.values():
            for miner in chain:  # type: ignore[attr-defined]
                if miner.learning_rate is not None:
                    own = [p for p in miner.parameters() if p.requires_grad]
                    groups += self._decayed_and_plain(own, lr=miner.learning_rate)
                    taken |= set(own)
        rest = [p for p in self.parameters() if p.requires_grad and p not in taken]
        return [*self._decayed_and_plain(rest), *(group for group in groups if group["params"])]

    def _decayed_and_plain(self, weights: Sequence[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
        decayed, plain = [p for p in weights if p.ndim >= 2], [p for p in weights if p.ndim < 2]
        return [
            {"params": decayed, "weight_decay": self.weight_decay, **options},
            {"params": plain, "weight_decay": 0.0, **options},
        ]

    def _total_steps(self) -> int:
        """Optimiser steps of the whole fit.

        Lightning's own estimate starts the training loader to count its batches, with its workers, before a checkpoint
        has been read and before anybody could hand over embeddings.
        """
        trainer: Any = self.trainer
        batches = getattr(getattr(trainer, "datamodule", None), "batches", None)
        if batches is None or trainer.max_epochs in (None, -1) or trainer.overfit_batches:
            return int(trainer.estimated_stepping_batches) if trainer.max_steps == -1 else trainer.max_steps
        limit = trainer.limit_train_batches
        number = int(len(batches) * limit) if isinstance(limit, float) else min(len(batches), limit)
        steps = math.ceil(number / trainer.accumulate_grad_batches) * trainer.max_epochs
        return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)

    def _follow(self) -> None:
        """Let the slow copy follow the encoder, once per optimiser step and before anything is encoded."""
        if self.slow is not None and self._followed != self.global_step:
            self.slow.update_parameters(self.encoder)  # type: ignore[arg-type]  # the first time, it copies
            self._followed = self.global_step

    def _auxiliary(self, chain: Sequence[PoolMiner], pool: NegativePool) -> Tensor | float:
        terms = [term for miner in chain if (term := miner.aux_loss(pool)) is not None]
        return sum((reduce(*term) for term in terms), start=torch.zeros((), device=self.device))

    def _log_step(self, loss: Tensor) -> None:
        """Log the numbers of all processes, alike on each."""
        anchors = len(self._rows) if self._rows is not None else 0
        self.log("train/loss", added(loss) / process_count(), prog_bar=True, batch_size=anchors)
        for pool in self.finished:
            prefix = "train/" if len(self.finished) == 1 else f"train/{pool.direction}/"
            statistics = pool.statistics(combine=added)
            for miner in self.chain_of(pool.direction):
                own = miner.statistics(pool, combine=added)
                statistics |= {f"{type(miner).__name__}/{name}": value for name, value in own.items()}
            self.log_dict({prefix + name: value for name, value in statistics.items()}, batch_size=anchors)
            self._warn_once(statistics, anchors)

    def _warn_once(self, statistics: Mapping[str, Tensor], anchors: int) -> None:
        if self._warned:
            return
        share, empty = float(statistics["dropped_share"]), float(statistics["empty_rows"]) / anchors
        dropped = any(float(value) for name, value in statistics.items() if name.startswith("dropped/"))
        if share > 0.5 or (empty > 0.05 and dropped):  # a queue that is empty yet has dropped nothing
            self._warned = True
            log.warning(
                "step %d: the chain of miners dropped %.0f %% of the candidates and left %.0f %% of the anchors "
                "without negatives; such anchors teach nothing. Loosen its margins, or take another guide.",
                self.global_step,
                100 * share,
                100 * empty,
            )


def check_chain(chain: Sequence[PoolMiner], loss: PoolLoss, provides: frozenset[str]) -> None:
    """Compare what each miner and the loss need with what the family and the miners before provide.

    Raises:
        ValueError: names who needs what, with the meaning of the word.
    """
    available = set(provides)
    parts: list[PoolMiner | PoolLoss] = [*chain, loss]
    for part in parts:
        missing = sorted(part.needs - available)
        if missing:
            meanings = "; ".join(f"{word}: {ABILITIES.get(word, 'unknown')}" for word in missing)
            raise ValueError(
                f"{type(part).__name__} needs {missing} ({meanings}), which neither this module "
                f"(it provides {sorted(provides)}) nor a miner before it provides."
            )
        available |= getattr(part, "provides", frozenset())
