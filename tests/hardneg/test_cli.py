"""The command line: what comes out of a run, and the one sentence that each mistake ends in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml

from hardneg.cli import configs_folder, find_configs, main


@pytest.fixture
def arguments(tmp_path: Path, sample_folder: Path, tiny_model: Path) -> list[str]:
    """A fit that takes a second: twelve documents, a table of words."""
    config = {
        "data": {
            "class_path": "datamodules.RetrievalData",
            "init_args": {"folder": str(sample_folder), "batch_size": 3},
        },
        "model": {
            "class_path": "hardneg.modules.RetrievalModule",
            "init_args": {
                "encoder": {"class_path": "hardneg.encoders.TextEncoder", "init_args": {"model": str(tiny_model)}},
                "learning_rate": 0.01,
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False},
        "folder": str(tmp_path / "run"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path)]


def test_fit_leaves_what_a_user_wants(arguments, tmp_path):
    assert main([*arguments, "--config", "miners/ngame.yaml", "--data.batch_miner.cluster_size=2"]) == 0
    run = tmp_path / "run" / "version_0"
    assert {"config.yaml", "metrics.csv", "negatives.jsonl", "evaluation.json", "report.html", "model"} <= {
        path.name for path in run.iterdir()
    }
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(run / "model"), device="cpu").encode(["cat"]).shape == (1, 8)
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    torch.load(checkpoint, weights_only=True)
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss", "train/hardness_mean", "train/hardness_max", "train/empty_rows", "val/nDCG@10"} <= set(
        header.split(",")
    )


def test_test_and_predict_read_the_checkpoint(arguments, tmp_path, capsys):
    from miners import Store

    assert main(arguments) == 0
    (checkpoint,) = (tmp_path / "run").rglob("*.ckpt")
    rest = [*arguments[1:], "--ckpt_path", str(checkpoint)]
    assert main(["test", *rest]) == 0
    assert "test/nDCG@10" in capsys.readouterr().out
    assert main(["predict", *rest]) == 0
    store = Store.load(tmp_path / "run" / "stores" / "document")
    assert len(store) == 12
    assert list(store.names)[:2] == ["d0", "d1"]
    assert len(store.key) == 64


def test_same_seed_same_loss_curve(arguments, tmp_path):
    curves = []
    for version in range(2):
        assert main([*arguments, "--config", "miners/ngame.yaml", "--data.batch_miner.cluster_size=2"]) == 0
        rows = (tmp_path / "run" / f"version_{version}" / "metrics.csv").read_text().splitlines()
        loss = rows[0].split(",").index("train/loss")
        curves.append([row.split(",")[loss] for row in rows[1:]])
    assert curves[0] == curves[1]
    assert len([value for value in curves[0] if value]) == 4


def test_loggers_by_choice(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*arguments, "--logging=[wandb,tensorboard]", "--trainer.max_epochs=1"]) == 0
    run = tmp_path / "run"
    assert list(run.rglob("events.out.tfevents.*"))
    assert list(run.rglob("offline-run-*"))
    assert (run / "version_0" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--model.learning_rat=0.1"], "learning_rat"),
        (["--config", "miners/gits.yaml"], "config 'miners/gits.yaml': no such file here, and none ships with hardneg"),
        (["--data.folder=nowhere"], "nowhere"),
        (["--data.batch_size=0"], "batch_size=0"),
        (["--model.miners=[{class_path: miners.GIST}]"], "GIST needs ['guide']"),
        (["--model.encoder.model=./no_model"], "'./no_model' is no model folder"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, extra, words, capsys):
    try:
        status = main([*arguments, *extra])
    except SystemExit as end:  # jsonargparse's own door
        status = end.code
    assert status
    assert words in capsys.readouterr().err


def test_misspelt_yaml_key(arguments, tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    learning_rte: 0.1\n")
    with pytest.raises(SystemExit):
        main([*arguments, "--config", str(overlay)])
    assert "learning_rte" in capsys.readouterr().err


def test_unknown_document_in_qrels(arguments, sample_folder, edit_lines, capsys):
    edit_lines(sample_folder / "qrels" / "train.tsv", lambda lines: [*lines, "q1\td99\t1"])
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "unknown document id 'd99'" in error
    assert "train.tsv" in error


def test_empty_document(arguments, sample_folder, edit_lines, capsys):
    empty = json.dumps({"_id": "d12", "title": "", "text": " "})
    edit_lines(sample_folder / "corpus.jsonl", lambda lines: [*lines, empty])
    assert main(arguments) == 1
    assert "empty text: document 'd12' has nothing to encode" in capsys.readouterr().err


def test_nan_embeddings_end_before_training(arguments, tiny_model, capsys):
    from safetensors.torch import load_file, save_file

    (weights,) = tiny_model.rglob("*.safetensors")
    tensors = load_file(weights)
    tensors = {name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}
    save_file(tensors, weights)
    assert main([*arguments, "--evaluate_start=false"]) == 1
    assert "not finite" in capsys.readouterr().err


def test_missing_column_names_the_file(arguments, sample_folder, capsys):
    with gzip.open(sample_folder / "corpus.jsonl.gz", "wt") as out:
        out.write('{"id": "d0"}\n')
    (sample_folder / "corpus.jsonl").unlink()
    assert main(arguments) == 1
    assert "corpus.jsonl.gz" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "test"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--config miners/ngame.yaml" in printed
    assert "--logging" in printed


def test_without_a_command_it_lists_them(capsys):
    assert main([]) == 0
    assert "fit" in capsys.readouterr().out
    assert main(["fti"]) == 2


def test_shipped_configs_are_found():
    (found,) = find_configs(["--config=models/minilm.yaml"])
    assert Path(found.removeprefix("--config=")).exists()


OVERLAYS = sorted(configs_folder().glob("miners/*.yaml"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_trains_a_step(overlay, arguments, tmp_path, sample_folder, monkeypatch, capsys):
    """With tiny weights in place of MiniLM's; the files that an overlay asks the user for are made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    queries = [f"q{i}" for i in range(6)]
    pq.write_table(pa.table({"query_id": queries, "doc_id": [f"d{11 - i}" for i in range(6)]}), "negatives.parquet")
    more = []
    if overlay.stem in ("gist", "focal_distillation"):
        guide = json.loads(json.dumps(yaml.safe_load(Path(arguments[2]).read_text())["model"]["init_args"]["encoder"]))
        more = [f"--model.guide={json.dumps(guide)}", "--model.allow_same_guide=true"]
    if overlay.stem == "adore":
        assert main(["predict", *arguments[1:], "--folder=runs/vectors"]) == 0
    if overlay.stem == "cluster_negatives":
        assert main(["predict", *arguments[1:], "--folder=runs/predict"]) == 0
    if overlay.stem == "cet":
        overlay = changed(overlay, tmp_path, "dim: 384", "dim: 8")
    if overlay.stem == "taxonomy":
        parents = [f"d{i}\t{i // 4}" for i in range(12)]
        Path("parents.tsv").write_text("\n".join(["child\tparent", *parents]))
        overlay = changed(overlay, tmp_path, "$HARDNEG_DATA/esco_skills/skills.jsonl.gz, ", "")
        overlay = changed(overlay, tmp_path, "$HARDNEG_DATA/esco_skills/skill_groups.jsonl.gz", "parents.tsv")
        overlay = changed(
            overlay, tmp_path, "child: _id\n          parent: parents\n          name: label\n          ", ""
        )
    if overlay.stem == "cluster_weights":  # of the sample's 12 documents
        overlay = changed(overlay, tmp_path, "[10, 30]", "[2]")
    if overlay.stem == "learned_weights":
        overlay = changed(overlay, tmp_path, "dim: 384", "dim: 8")
    command = [*arguments, "--config", str(overlay), *more, "--trainer.max_steps=1", "--evaluate_start=false"]
    if overlay.stem == "augmented_negatives":  # of rows of numbers; texts have none, and that is said
        assert main(command) == 1
        assert "AugmentedNegatives corrupts what a row is made of" in capsys.readouterr().err
        return
    if overlay.stem in ("edited_captions", "generated_negatives", "generated_pictures"):  # for pictures with captions
        assert main(command) == 1
        assert "GeneratedNegatives draws from the space" in capsys.readouterr().err
        return
    if overlay.stem == "family_batches":
        assert main([*command, "--data.batch_size=4"]) == 1
        assert "FamilyBatches needs the family of each row" in capsys.readouterr().err
        return
    if overlay.stem in ("neighbours", "neighbours_place"):  # texts lie nowhere, and that is said
        assert main(command) == 1
        assert "this training set has no places" in capsys.readouterr().err
        return
    if overlay.stem in ("static_bank", "static_bank_gist"):  # for composed queries, behind the recipes of CIR
        said = {"static_bank": "wants 'query' or 'document'", "static_bank_gist": "is no composed encoder"}
        assert main(command) == 1
        assert said[overlay.stem] in capsys.readouterr().err
        return
    if overlay.stem == "balanced_classes":  # for pictures; queries have no classes, and that is said
        assert main([*command, "--data.batch_size=4"]) == 1
        assert "BalancedClasses needs the class of each row" in capsys.readouterr().err
        return
    assert main(command) == 0


def changed(overlay: Path, folder: Path, old: str, new: str) -> Path:
    """An overlay that fits the test's tiny data and model."""
    text = overlay.read_text()
    assert old in text
    (folder / overlay.name).write_text(text.replace(old, new))
    return folder / overlay.name
