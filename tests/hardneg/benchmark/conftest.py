"""A suite that takes seconds: twelve documents, a table of words, two chains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardneg.benchmark.cell import find_overlay
from hardneg.benchmark.suite import Suite, read_suite


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """A suite quiets loggers for the rest of its process; here other tests want to hear them."""
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    yield
    for name in logging.root.manager.loggerDict:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.fixture
def suite_file(tmp_path: Path, sample_folder: Path, tiny_model: Path) -> Callable[..., Path]:
    """Write a suite; keyword arguments take the place of its keys, None takes one out."""

    def write(**changes: Any) -> Path:
        encoder = {"class_path": "hardneg.encoders.TextEncoder", "init_args": {"model": str(tiny_model)}}
        given = {
            "name": "tiny",
            "base": [{"trainer": {"accelerator": "cpu"}}],
            "data": {
                "zoo": [
                    {
                        "data": {
                            "class_path": "datamodules.RetrievalData",
                            "init_args": {"folder": str(sample_folder), "batch_size": 3},
                        }
                    }
                ]
            },
            "models": {
                "words": [
                    {
                        "model": {
                            "class_path": "hardneg.modules.RetrievalModule",
                            "init_args": {"encoder": encoder, "learning_rate": 0.01},
                        }
                    }
                ]
            },
            "chains": {
                "in-batch": ["miners/in_batch.yaml"],
                "ngame": [
                    "miners/ngame.yaml",
                    {"data": {"init_args": {"batch_miner": {"init_args": {"cluster_size": 2}}}}},
                ],
            },
            "seeds": 2,
            "budget": {"steps": 4},
            "points": 2,
        }
        given = {name: value for name, value in (given | changes).items() if value is not None}
        file = tmp_path / "tiny_suite.yaml"
        file.write_text(yaml.safe_dump(given, sort_keys=False))
        return file

    return write


@pytest.fixture
def make_suite(suite_file: Callable[..., Path]) -> Callable[..., Suite]:
    """The same as a `Suite`."""
    return lambda **changes: read_suite(suite_file(**changes), find_overlay)
