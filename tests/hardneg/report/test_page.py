from __future__ import annotations

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hardneg.report import write_report
from hardneg.report.evaluation import read_evaluations
from hardneg.report.measures import difference

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"


class Page(HTMLParser):
    """Elements with their attributes, and all text outside of <style>."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._parts: list[str] = []
        self._inside: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self._parts.append(data)

    @property
    def text(self) -> str:
        """As a browser shows it: white space is one blank."""
        return " ".join("".join(self._parts).split())


def test_a_page_of_everything(
    tmp_path: Path,
    make_run: Callable[..., Path],
    make_evaluation: Callable[..., dict[str, Any]],
    write_evaluations: Callable[..., None],
) -> None:
    run = make_run(tmp_path / "my_run")
    (run / "config.yaml").write_text("model: {learning_rate: 2.0e-05}\n")
    write_evaluations(
        run,
        make_evaluation("start", [4, 1, None]),
        make_evaluation("final", [1, 2, 4], seconds=83.4, step=6),
    )
    file = write_report(run)
    assert file == run / "report.html"
    text = Page(file).text
    assert "MRR@10 on the split ‘dev’: 0.417 at the start, 0.583 after training." in text
    assert "learning_rate: 2.0e-05" in text
    assert "1 min 23 s" in text
    assert "+0.167" in text
    assert "Of 3 queries, 2 find their right document higher than before, 0 at the same place, 1 lower." in text
    assert "a text, anchor 0" in text
    assert "a text, wrong 1 in-batch" in text
    assert "the guide finds it closer than the positive" in text
    assert "not among the first 100" in text
    assert "No anchor was ever left without negatives." in text
    assert "missing" not in {attributes.get("class") for _, attributes in Page(file).elements}


def test_hostile_text_stays_text_and_nothing_is_loaded(
    tmp_path: Path,
    make_run: Callable[..., Path],
    make_evaluation: Callable[..., dict[str, Any]],
    write_evaluations: Callable[..., None],
) -> None:
    run = make_run(tmp_path / "<b>&run", text=HOSTILE)
    (run / "config.yaml").write_text(HOSTILE)
    metrics = (run / "metrics.csv").read_text().replace("dropped/gist", "dropped/<script>alert(2)<-script> $x_")
    (run / "metrics.csv").write_text(metrics)
    write_evaluations(
        run,
        make_evaluation("start", [4, 1], HOSTILE, split=HOSTILE),
        make_evaluation(HOSTILE, [1, 2], HOSTILE, split=HOSTILE),
    )
    page = Page(write_report(run, title=HOSTILE))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form", "video", "b><"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    source = (run / "report.html").read_text()
    assert "<script" not in source
    assert "@import" not in source
    assert source.count(HOSTILE) == 0
    for expected in (
        f"{HOSTILE}, anchor 0",
        f"{HOSTILE}, wrong 1",
        f"{HOSTILE}, the right document",
        f"InfoNCE({HOSTILE})",
    ):
        assert expected in page.text
    assert "default-src 'none'" in source  # were anything to slip through, the browser would not run it


def test_runs_side_by_side_share_their_start(
    tmp_path: Path,
    make_run: Callable[..., Path],
    make_evaluation: Callable[..., dict[str, Any]],
    write_evaluations: Callable[..., None],
) -> None:
    start = make_evaluation("start", [4, 4])
    write_evaluations(tmp_path, start)
    for name, ranks, seconds in (("in_batch", [2, 2], 420), ("mined", [1, 2], 442)):
        write_evaluations(
            make_run(tmp_path / name / "version_0"), start, make_evaluation("final", ranks, seconds=seconds)
        )
    text = Page(write_report(tmp_path, "Both")).text
    assert "hardneg report, 2 runs side by side" in text
    assert "0.250 at the start, 0.500 with in-batch, 0.750 with mined." in text
    assert text.count("0.250 at the start") == 1
    assert "mined − in-batch" in text
    assert "7 min 22 s" in text
    assert "start → mined" in text


def test_two_directions_have_a_panel_each(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    text = Page(write_report(make_run(tmp_path, directions=("query_to_document", "document_to_query")))).text
    assert "query to document" in text
    assert "document to query" in text
    assert "Anchors left without negatives" in text  # each direction empties one row in each step


def test_what_is_missing_says_how_to_get_it(
    tmp_path: Path,
    make_run: Callable[..., Path],
    make_evaluation: Callable[..., dict[str, Any]],
    write_evaluations: Callable[..., None],
) -> None:
    run = make_run(tmp_path)
    (run / "negatives.jsonl").unlink()
    (run / "run.json").unlink()
    text = Page(write_report(run)).text
    assert "No negatives.jsonl in this folder. Add the callback hardneg.callbacks.RecordNegatives" in text
    assert "No evaluation.json in this folder. Give the data a validation split" in text
    assert "The folder does not say what was trained." in text
    (run / "metrics.csv").unlink()
    write_evaluations(run, make_evaluation("final", [1]))
    text = Page(write_report(run)).text
    assert "No evaluation from before training, so nothing to compare with. Call" in text
    assert "No hardness in metrics.csv. Put pytorch_lightning.loggers.CSVLogger first" in text


def test_evaluations_of_two_splits_are_not_compared(
    tmp_path: Path, make_evaluation: Callable[..., dict[str, Any]], write_evaluations: Callable[..., None]
) -> None:
    write_evaluations(tmp_path, make_evaluation("start", [4, 4]), make_evaluation("final", [1, 1], split="test"))
    start, final = read_evaluations(tmp_path)
    assert difference(start, final, "MRR@10") is None
    text = Page(write_report(tmp_path)).text
    assert "+0.750" not in text
    assert "This needs two evaluations of one split" in text


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run")
    out = write_report(run, out=tmp_path / "pages" / "mine.html")
    assert [file.name for file in (tmp_path / "pages").iterdir()] == ["mine.html"]
    assert out.read_text() == write_report(run).read_text()  # the same folder makes the same page


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in ("hardneg.report.curves", "hardneg.report.pictures"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("hardneg.report.curves", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the report needs {package}.*: pip install 'hardneg\[train\]'"):
        write_report(make_run(tmp_path))
