"""A mined table trains: `hardneg mine`, then `hardneg fit` with `StaticNegatives` among its sources."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from hardneg.cli import main

FIT = """
data:
  class_path: datamodules.RetrievalData
  init_args: {{folder: {folder}, batch_size: 3, val_split: null}}
model:
  class_path: hardneg.modules.RetrievalModule
  init_args:
    encoder: {{class_path: hardneg.encoders.TextEncoder, init_args: {{model: {model}}}}}
trainer: {{accelerator: cpu, max_steps: 2, enable_progress_bar: false, enable_model_summary: false}}
folder: {run}
"""


def test_two_steps_with_the_negatives_of_a_mined_table(tmp_path: Path, sample_folder: Path, tiny_model: Path) -> None:
    mined = tmp_path / "negatives.parquet"
    options = ["--num-negatives", "3", "--too-few", "pad", "--max-score", "0.9", "--no-cache"]
    assert main(["mine", str(sample_folder), "--model", str(tiny_model), "--out", str(mined), *options]) == 0
    config = tmp_path / "fit.yaml"
    config.write_text(FIT.format(folder=sample_folder, model=tiny_model, run=tmp_path / "run"))
    source = ["--data.sources+=miners.StaticNegatives", f"--data.sources.negatives={mined}"]
    assert main(["fit", "--config", str(config), *source, "--data.sources.num_negatives=2"]) == 0
    run = tmp_path / "run" / "version_0"
    records = [json.loads(line) for line in (run / "negatives.jsonl").read_text().splitlines()]
    negatives = [negative for record in records for negative in record["negatives"]]
    shown = {negative["text"] for negative in negatives if negative["origin"] == "mined"}
    corpus = {row["_id"]: row for row in map(json.loads, (sample_folder / "corpus.jsonl").read_text().splitlines())}
    table = {one for one in pq.read_table(mined)["doc_id"].to_pylist() if one is not None}
    assert shown
    assert shown <= {f"{corpus[one]['title']} {corpus[one]['text']}" for one in table}
    assert (run / "metrics.csv").read_text().count("\n") >= 3  # two steps
