"""The pages about made negatives and knowledge graphs name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import datamodules
import miners
from hardneg.cli import configs_folder
from miners import caption_edits, neighbourhoods

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["generated_negatives", "knowledge_graphs"])
def test_configs_and_classes_of_the_page_are_there(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    for name in re.findall(r"(?:recipes|miners|suites)/\w+\.yaml", text):
        assert (configs_folder() / name).exists(), f"{page}.md names {name}"
    known = {**vars(miners), **vars(datamodules), **vars(caption_edits), **vars(neighbourhoods)}
    for name in re.findall(r"`([A-Z]\w+(?:Negatives|Batches|Edit|Data|Batch))\b", text):
        assert name in known, f"{page}.md names {name}"
