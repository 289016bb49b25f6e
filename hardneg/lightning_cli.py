"""`hardneg fit | validate | test | predict`: LightningCLI with our defaults."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules  # noqa: F401  its classes may be named bare in YAML
import miners  # noqa: F401
from hardneg.callbacks import CheckpointPaths, RecordNegatives, SaveEncoder, WriteReport, WriteStores
from hardneg.checkpoints import use_whole_checkpoints
from hardneg.cli import COMMANDS, DESCRIPTION, LIGHTNING, Logging, make_loggers
from hardneg.modules.base import ContrastiveModule
from hardneg.report import save_evaluation


class _Help(DefaultHelpFormatter):
    """Help that keeps the lines of the description, so that commands can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


class HardnegCLI(LightningCLI):
    """Typed overlays for data, model, miners and losses; run folder, loggers, checkpoints and report set up."""

    @classmethod
    def start(cls, arguments: ArgsType, run: bool = True) -> HardnegCLI:
        """Parse, instantiate and (with ``run``) execute."""
        # between Lightning and newer torch; nothing that whoever trains could do about it
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
        return cls(
            ContrastiveModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,  # batch miners share their batches themselves
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "max_epochs": 2,
            },
            parser_kwargs={"prog": "hardneg", "formatter_class": _Help}
            | {command: {"description": f"{COMMANDS[command]}\n\n{DESCRIPTION}"} for command in LIGHTNING},
            args=arguments,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--folder", default="runs/fit", help="Where the run's versions go: version_0, version_1, ..."
        )
        parser.add_argument(
            "--logging",
            type=list[Logging],
            default=[],
            help="Besides metrics.csv: wandb (offline when not logged in), tensorboard, or both.",
        )
        parser.add_argument(
            "--evaluate_start",
            type=bool,
            default=True,
            help="Evaluate before training too, so that the report can show before and after.",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_number)
        parser.link_arguments("seed_everything", "model.init_args.seed", compute_fn=_number)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        with warnings.catch_warnings():
            # main() hands over sys.argv itself, with shipped configs found; Lightning takes that for a mistake
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it.

        Lightning takes ``class_path`` and arguments of the model from the checkpoint's hyper_parameters. They are plain
        data, so ``weights_only`` lets them through, and a checkpoint of somebody else would choose what code runs.

        Raises:
            ValueError: a folder: the parts of a sharded checkpoint are described by a pickle.
        """
        path = self.config.get(self.config.get("subcommand") or "", {}).get("ckpt_path")
        if path is not None and Path(path).is_dir():
            raise ValueError(
                f"--ckpt_path must be a file, got the folder {path}: a checkpoint in shards holds a pickle, which is "
                "not read."
            )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config, "folder"), self._get(self.config, "logging")
        command = self.subcommand or "fit"
        given = self._get(self.config_init, "trainer").get("logger")
        if given in (None, True) and command == "fit":
            kwargs["logger"] = make_loggers(config[1], config[0])
        elif given is None:
            kwargs["logger"] = False
        if self._get(self.config_init, "trainer").get("default_root_dir") is None:
            kwargs["default_root_dir"] = config[0]
        trainer = super().instantiate_trainer(**kwargs)
        use_whole_checkpoints(trainer)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector of its own
        callbacks.extend([*_missing(callbacks, trainer, command, config[0]), CheckpointPaths()])
        return trainer

    def before_fit(self) -> None:
        if self._get(self.config, "evaluate_start") and getattr(self.datamodule, "val_split", None):
            self.trainer.validate(self.model, self.datamodule, verbose=False)
            folder = self.trainer.log_dir or self.trainer.default_root_dir  # on every process: Lightning broadcasts it
            if self.trainer.is_global_zero:
                save_evaluation(folder, "start", self.model.measures, self.datamodule, self.datamodule.val_split)
        self._began = time.perf_counter()

    def after_fit(self) -> None:
        self.seconds = time.perf_counter() - self._began

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("weights_only") is None:
            kwargs["weights_only"] = True  # a checkpoint is data: nothing in it is run
        return kwargs


def _number(seed: Any) -> int:
    """`seed_everything` may be true or false; draws want a number."""
    return int(seed)


def _missing(given: Sequence[pl.Callback], trainer: pl.Trainer, command: str, folder: str) -> Sequence[pl.Callback]:
    """Callbacks that every run has, unless the config names its own of that kind."""
    if command == "predict":
        wanted: list[pl.Callback] = [WriteStores(str(Path(folder) / "stores"))]
    elif command == "fit" and trainer.loggers:
        wanted = [RecordNegatives(), SaveEncoder(), WriteReport()]
    else:
        wanted = []
    return [callback for callback in wanted if not any(isinstance(c, type(callback)) for c in given)]
