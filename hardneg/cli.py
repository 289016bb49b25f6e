"""The command `hardneg`: train, evaluate, encode, mine, audit, report."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hardneg.plain import plain

COMMANDS = {
    "fit": "train a model (Lightning)",
    "validate": "evaluate on the validation split",
    "test": "evaluate on the test split",
    "predict": "encode queries and corpus into stores",
    "mine": "write a table of hard negatives",
    "audit": "say how hard, how fresh and how false a table of negatives is",
    "data": "make training data: triplets from captions",
    "report": "draw the page of a finished run",
    "benchmark": "run suites of chains under one budget, and compare them",
}
LIGHTNING = ("fit", "validate", "test", "predict")
OTHERS = {
    "mine": "hardneg.mining.cli",
    "audit": "hardneg.audit.cli",
    "data": "hardneg.data.cli",
    "report": "hardneg.report.cli",
    "benchmark": "hardneg.benchmark.cli",
}

DESCRIPTION = """\
Configs are small files that combine: one for the data, one for the model, any number for miners. Relative names are
looked up here first, then among the configs that ship with hardneg (see them with: hardneg configs).

  hardneg fit --config data/scifact.yaml --config models/minilm.yaml --config miners/ngame.yaml
  hardneg fit --config recipes/quickstart.yaml --model.learning_rate 3e-5
  hardneg fit ... --model.miners+=miners.PositiveAware --model.miners.relative_margin=0.1
  hardneg test --config runs/fit/version_0/config.yaml --ckpt_path runs/fit/version_0/checkpoints/last.ckpt

What comes out stands in --folder: metrics.csv, checkpoints, model/ (loads with SentenceTransformer) and report.html.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors end in one sentence on stderr and exit status 1."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()  # advertisements
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "sentence_transformers", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if command == "configs":
        print("\n".join(sorted(str(path.relative_to(configs_folder())) for path in configs_folder().rglob("*.yaml"))))
        return 0
    if command not in COMMANDS:
        print("usage: hardneg COMMAND ...\n\n" + "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
        print(
            "  configs   list the configs that ship with hardneg\n\nhardneg COMMAND --help teaches more.\n\n"
            + DESCRIPTION
        )
        return 0 if command in ("--help", "-h") else 2
    try:
        return _lightning(arguments) if command in LIGHTNING else _other(command, arguments[1:])
    except KeyboardInterrupt:
        print("hardneg: stopped by the keyboard", file=sys.stderr)
        return 130
    except Exception as error:  # the door: context is added once, and the reason comes first
        print(f"hardneg {command}: {plain(reason(error))}", file=sys.stderr)
        if os.environ.get("HARDNEG_TRACEBACK") or not isinstance(innermost(error), ValueError | OSError | ImportError):
            traceback.print_exception(error)
        else:
            print("(set HARDNEG_TRACEBACK=1 to see where)", file=sys.stderr)
        return 1


def innermost(error: BaseException) -> BaseException:
    """The first error that others have wrapped without saying more themselves.

    A ``raise ... from error`` of ours adds context on purpose (which file, how to install), so explicit causes are
    only followed through what libraries wrap around a constructor.
    """
    while True:
        below = error.__cause__ if not _ours(error) else None
        below = below or (None if error.__suppress_context__ or _ours(error) else error.__context__)
        if below is None:
            return error
        error = below


def _ours(error: BaseException) -> bool:
    """Whether one of our own packages raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return name.split(".")[0] in ("hardneg", "miners", "datamodules")


def reason(error: BaseException) -> str:
    """One sentence: the innermost reason."""
    first = innermost(error)
    return str(first) or type(first).__name__


def configs_folder() -> Path:
    """Where the shipped YAML is: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Replace the value of each ``--config`` by the shipped file of that name, where there is no such file here.

    Raises:
        FileNotFoundError: neither here nor shipped.
    """
    found, expects = [], False
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if expects or (name in ("--config", "-c") and sign):
            path = argument if expects else value
            argument = ("" if expects else f"{name}=") + _config(path)
        expects = argument in ("--config", "-c")
        found.append(argument)
    return found


def _config(name: str) -> str:
    if Path(name).exists() or name in ("null", "None"):
        return name
    shipped = configs_folder() / name
    if not shipped.exists():
        raise FileNotFoundError(
            f"config '{name}': no such file here, and none ships with hardneg. `hardneg configs` lists those that do."
        )
    return str(shipped)


def _other(command: str, arguments: Sequence[str]) -> int:
    module = importlib.import_module(OTHERS[command])
    parser = argparse.ArgumentParser(
        prog=f"hardneg {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments)) or 0)


def _lightning(arguments: Sequence[str]) -> int:
    from hardneg.lightning_cli import HardnegCLI

    HardnegCLI.start(find_configs(arguments))
    return 0


Logging = Literal["csv", "wandb", "tensorboard"]


def make_loggers(names: Sequence[Logging], folder: str, project: str = "hardneg") -> list[Any]:
    """Lightning loggers for a run's folder; csv is always there, since the report is made of it.

    W&B is used offline where nobody is logged in, and says so.
    """
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

    csv = CSVLogger(folder, name=None)
    loggers: list[Any] = [csv]
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(folder, name=None, version=csv.version))
    if "wandb" in names:
        import wandb

        offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.api.api_key
        if offline:
            logging.getLogger(__name__).info("W&B: not logged in, so the run is kept offline; `wandb sync` uploads it.")
        loggers.append(WandbLogger(project=project, save_dir=folder, offline=offline))
    return loggers


if __name__ == "__main__":
    sys.exit(main())
