"""What data modules of all families have in common: training rows, who meets in a batch, and how a run goes on."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import Batch
from miners.base import BatchMiner, DrawnBatches, NegativeSource, Row, Shuffled, TrainingTable


class RowsData(LightningDataModule, ABC):
    """Training rows in batches that a `BatchMiner` arranges, with what sources draw for each row.

    Args:
        batch_size: training rows of one process' batch; `batch_miner` takes it over.
        batch_miner: who meets in a batch; None shuffles.
        sources: which negatives travel with a row, besides the other rows' positives.
        drop_last: leave the last, shorter training batch out; `batch_miner` takes it over.
        eval_batch_size: things of one batch of the validation, test and predict loaders.
        num_workers: processes that make batches; 0 = the main process.
        seed: seeds orders, positives and draws; `batch_miner` takes it over.

    Raises:
        ValueError: a size below 1, or a `batch_miner` that was given another batch_size, drop_last or seed.
    """

    def __init__(
        self,
        batch_size: int = 64,
        batch_miner: BatchMiner | None = None,
        sources: Sequence[NegativeSource] = (),
        drop_last: bool = False,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value < least:
                raise ValueError(f"{type(self).__name__}({name}={value}): wants at least {least}.")
        self.batch_size = batch_size
        self.batch_miner = Shuffled() if batch_miner is None else batch_miner
        self.sources = tuple(sources)
        self.drop_last = drop_last
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        for name in ("batch_size", "drop_last", "seed"):
            self._hand_over(name)
        self.batches: DrawnBatches | None = None
        self._resumed_epoch: int | None = None

    @abstractmethod
    def collate_rows(self) -> Callable[[Sequence[Row]], Batch]:
        """What turns B rows into a `Batch`, in a worker: it should hold little else than the data."""

    def start(self, table: TrainingTable, sources: Sequence[NegativeSource]) -> None:
        """Show the training rows to the batch miner and to the sources; families call it in ``setup("fit")``."""
        self.batch_miner.attach(table)
        for source in sources:
            source.attach(table)
        self.batches = DrawnBatches(self.batch_miner, sources, self.seed)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training rows; `Batch` says what is in one.

        Raises:
            ValueError: several processes with `use_distributed_sampler`, which would share the shares once more.
        """
        batches = self._training()
        if self.trainer is not None:
            # a private name: Lightning 2.6 has no public one for this option
            if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
                raise ValueError(
                    f"{self} shares its batches between the {self.trainer.world_size} processes itself, so that hard "
                    "batches stay together, but the Trainer wants to put a sampler of its own in their place. Set "
                    "trainer.use_distributed_sampler=false."
                )
            # Lightning starts the workers of a resumed run before it tells the sampler which epoch that is, before it
            # counts an epoch as done whose last batch is the checkpoint's, and sometimes before it knows of any epoch.
            batches.set_epoch(self.trainer.current_epoch if self._resumed_epoch is None else self._resumed_epoch)
            self._resumed_epoch = None
        return self._loader(_Itself(len(self.table)), self.collate_rows(), TrainingLoader, batch_sampler=batches)

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch training stands, for the checkpoint."""
        return {} if self.batches is None else {"batches": self.batches.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the batch after the checkpoint's last."""
        if "batches" in state_dict and (batches := self.batches) is not None:  # testing and predicting train nothing
            batches.load_state_dict(state_dict["batches"])
            place = state_dict["batches"]["miner"]
            self._resumed_epoch = place["epoch"] + (place["trained"] >= len(batches))

    @property
    def table(self) -> TrainingTable:
        """The training rows as ids; there after ``setup("fit")``."""
        table = self._training().miner.table
        assert table is not None
        return table

    def depict(self, i: int, space: str) -> Tensor | None:
        """(C, H, W) uint8 that shows a thing to people; None where it has no picture."""
        return None

    def __str__(self) -> str:
        return type(self).__name__

    def _training(self) -> DrawnBatches:
        if self.batches is None:
            raise RuntimeError(f"{self} has no training rows yet: call setup('fit') first, as trainer.fit does.")
        return self.batches

    def _loader(
        self, dataset: Any, collate: Any, kind: type[DataLoader[Batch]] = DataLoader, **how: Any
    ) -> DataLoader[Batch]:
        return kind(
            dataset, collate_fn=collate, num_workers=self.num_workers, persistent_workers=self.num_workers > 0, **how
        )

    def _hand_over(self, name: str) -> None:
        """Give the batch miner one of this module's settings; complain if it was given another."""
        ours, theirs = getattr(self, name), getattr(self.batch_miner, name)
        unset = inspect.signature(type(self.batch_miner)).parameters.get(name)
        if theirs != ours and (unset is None or theirs != unset.default):
            miner = type(self.batch_miner).__name__
            raise ValueError(
                f"{miner}({name}={theirs!r}) meets {self} with {name}={ours!r}. Set data.init_args.{name} alone: the "
                "batch miner takes it over."
            )
        setattr(self.batch_miner, name, ours)


class TrainingLoader(DataLoader[Batch]):
    """A loader that may be resumed in the middle of an epoch, and says so by these two methods.

    Its place is the data module's state: Lightning restores a loader's only where an epoch is unfinished, and what
    batch miners have seen must outlive the epoch. Without Lightning, keep ``loader.batch_sampler.state_dict()``.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The data module has done it."""


class _Itself(Dataset[Row]):
    """A data set whose members are the `Row` that the batch sampler asks for: all work is done in collate."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: Row) -> Row:
        return row
