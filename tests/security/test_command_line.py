"""Classes come from the command line, YAML and suites of the user, and are checked before they are called."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hardneg.benchmark.peer import make_peer
from hardneg.callbacks import CheckpointPaths, RefreshNegatives
from hardneg.cli import main
from miners.offline import MinedNegatives
from tests.security.payloads import Pickled, custom_code, pickled_type

PAYLOADS = "tests.security.payloads"
door = pytest.mark.door


@pytest.fixture
def config(tmp_path: Path, sample_folder: Path) -> Path:
    """A fit of a few steps with a tiny encoder."""
    overlay = {
        "data": {
            "class_path": "datamodules.RetrievalData",
            "init_args": {"folder": str(sample_folder), "batch_size": 3},
        },
        "model": {
            "class_path": "hardneg.modules.RetrievalModule",
            "init_args": {"encoder": {"class_path": f"{PAYLOADS}.Harmless"}, "learning_rate": 0.01},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,  # no report either
        },
        "folder": str(tmp_path / "run"),
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


@door("checkpoint")
def test_a_checkpoint_names_no_class(config: Path, tmp_path: Path, mark: Path) -> None:
    """Lightning would take the model's class and arguments from hyper_parameters."""
    assert main(["fit", "--config", str(config)]) == 0
    (checkpoint,) = (tmp_path / "run").rglob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    assert "hyper_parameters" not in content  # ours hold none
    encoder = {"class_path": f"{PAYLOADS}.Marking", "init_args": {"mark": str(mark), "trust_remote_code": True}}
    module = "hardneg.modules.RetrievalModule"
    hostile = tmp_path / "hostile.ckpt"
    for hyper_parameters, commands in (
        ({"class_path": module, "init_args": {"encoder": encoder}}, ("fit", "validate", "test", "predict")),
        ({"_class_path": module, "encoder": encoder}, ("test",)),
        ({"_instantiator": "pytorch_lightning.cli.instantiate_module", "encoder": encoder}, ("test",)),
    ):
        torch.save(content | {"hyper_parameters": hyper_parameters}, hostile)
        for command in commands:
            assert main([command, "--config", str(config), "--ckpt_path", str(hostile)]) == 0, command
            assert not mark.exists(), command


@door("checkpoint")
def test_a_checkpoint_is_not_unpickled(config: Path, tmp_path: Path, mark: Path, capsys) -> None:
    """Neither a file that is a pickle, nor the metadata of a folder of shards."""
    torch.save({"state_dict": Pickled(mark)}, tmp_path / "hostile.ckpt")
    assert main(["test", "--config", str(config), "--ckpt_path", str(tmp_path / "hostile.ckpt")]) == 1
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".metadata").write_bytes(pickle.dumps(Pickled(mark)))
    for more in ([], ["--trainer.strategy=fsdp"]):
        assert main(["test", "--config", str(config), "--ckpt_path", str(tmp_path / "shards"), *more]) == 1
        assert "--ckpt_path must be a file, got the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state",
    [
        {"last_model_path": "{here}/../mine"},
        {"best_model_path": "local://{mine}"},  # Lightning removes what it takes for no local file
        {"best_model_path": "simplecache::{mine}"},
        {"best_model_path": "s3://bucket/all"},
        {"best_model_path": 3},
        {"kth_best_model_path": "{here}/../mine", "best_k_models": {}},
        {"best_k_models": {"{here}/link/../../mine": 0.0}},
    ],
)
def test_no_path_of_a_checkpoint_leads_out(state: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(name): filled(each) for name, each in value.items()}
        return value.format(here=tmp_path / "here", mine=tmp_path / "mine") if isinstance(value, str) else value

    trainer = SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(dirpath=str(tmp_path / "here"))])
    own = {
        "best_model_path": str(tmp_path / "here" / "a.ckpt"),
        "last_model_path": "",
        "best_k_models": {"/b.ckpt": 1.0},
    }
    CheckpointPaths().on_load_checkpoint(trainer, None, {"callbacks": {"ModelCheckpoint": own}})
    with pytest.raises(ValueError, match="names a file outside"):
        CheckpointPaths().on_load_checkpoint(trainer, None, {"callbacks": {"ModelCheckpoint": own | filled(state)}})


@door("checkpoint")
def test_a_checkpoint_names_no_file_of_vectors(tmp_path: Path, mark: Path) -> None:
    """`Store` takes the path of an array too, which is the user's to name."""
    torch.save(torch.eye(3), tmp_path / "secret.npy")
    refresh = RefreshNegatives(every_n_epochs=1)
    state = refresh.state_dict() | {"stores": {"query": {"vectors": str(tmp_path / "secret.npy")}}}
    with pytest.raises(ValueError, match="vectors of a store must be a tensor, got str"):
        refresh.load_state_dict(state)


@pytest.fixture
def table(tmp_path: Path, sample_folder: Path) -> MinedNegatives:
    """A table of `hardneg mine`, whose metadata a stranger may have changed."""
    path = tmp_path / "mined.parquet"
    options = ["--encoder", f"{PAYLOADS}.Harmless", "--no-cache", "--device", "cpu", "--num-negatives", "2"]
    assert main(["mine", str(sample_folder), "--out", str(path), *options]) == 0
    return MinedNegatives.load(path)


@door("table")
@pytest.mark.parametrize("named", [(), ("--encoder", f"{PAYLOADS}.Harmless")])
def test_a_table_names_no_class_and_no_model(
    named: tuple[str, ...], table: MinedNegatives, tmp_path: Path, sample_folder: Path, mark: Path, capsys
) -> None:
    """Its words are shown, and the audit mines again with what the user names, or not at all."""
    path, arguments = tmp_path / "hostile.parquet", table.metadata["inputs"]["model"]["arguments"]
    audit = ["audit", str(path), "--folder", str(sample_folder), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    for hostile in (
        {"encoder": "os.system", "encoder_args": {"command": f"touch '{mark}'"}},
        {"encoder": f"{PAYLOADS}.Marking", "encoder_args": {"mark": str(mark), "trust_remote_code": True}},
        {"encoder": None, "model": str(custom_code(tmp_path / "model", mark))},
        {"guide": str(custom_code(tmp_path / "guide", mark))},
        {"cross_encoder": str(custom_code(tmp_path / "cross", mark))},
    ):
        table.metadata["inputs"]["model"]["arguments"] = arguments | hostile
        table.to_parquet(path)
        assert main([*audit, *named]) == 0
        refused = not named or bool(hostile.keys() & {"encoder_args", "guide", "cross_encoder"})
        assert ("models that a table names are not loaded" in capsys.readouterr().out) == refused
        assert not mark.exists()


@door("configuration")
@pytest.mark.parametrize(
    "path", ["os.system", f"{PAYLOADS}.not_annotated", "pathlib.Path", "nowhere.Encoder", "Encoder"]
)
def test_an_encoder_is_checked_before_it_is_made(path: str, tmp_path: Path, sample_folder: Path, mark: Path) -> None:
    arguments = {"command": f"touch '{mark}'"} if path == "os.system" else {"mark": str(mark)}
    command = ["mine", str(sample_folder), "--out", str(tmp_path / "out.parquet"), "--no-cache", "--device", "cpu"]
    assert main([*command, "--encoder", path, "--encoder-args", json.dumps(arguments)]) == 1


@door("configuration")
@pytest.mark.parametrize("path", ["os.system", f"{PAYLOADS}.not_annotated", "tests.distributed.tiny.TinyEncoder"])
def test_a_peer_is_checked_before_it_is_made(path: str, mark: Path) -> None:
    arguments = {"command": f"touch '{mark}'"} if path == "os.system" else {"mark": str(mark)}
    with pytest.raises(ValueError, match=r"peer must be the class path of a .*\.Peer, got"):
        make_peer({"class_path": path, "init_args": arguments})


@door("checkpoint")
def test_a_checkpoint_removes_no_file(config: Path, tmp_path: Path, capsys) -> None:
    """ModelCheckpoint removes the file before; which that was, it takes from the checkpoint that is resumed."""
    assert main(["fit", "--config", str(config)]) == 0
    (checkpoint,) = (tmp_path / "run").rglob("*.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    (key,) = (key for key in content["callbacks"] if key.startswith("ModelCheckpoint"))
    state = content["callbacks"][key]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    fits = ["fit", "--config", str(config), "--trainer.max_epochs", "3", "--evaluate_start", "false"]
    here = tmp_path / "here"
    outside = str(here / "checkpoints" / ".." / ".." / "mine")
    new = {name: value for name, value in state.items() if name != "dirpath"} | {"best_model_path": outside}
    torch.save(content | {"callbacks": {key: new}}, tmp_path / "hostile.ckpt")
    assert main([*fits, "--folder", str(here), "--ckpt_path", str(tmp_path / "hostile.ckpt")]) == 1
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert "names a file outside" in capsys.readouterr().err
    torch.save(content | {"callbacks": {key: state}}, tmp_path / "honest.ckpt")
    assert main([*fits, "--folder", str(here), "--ckpt_path", str(tmp_path / "honest.ckpt")]) == 0


@door("configuration")
@pytest.mark.parametrize("tag", ["python/object/apply:pathlib.Path.touch", "python/object/new:pathlib.Path.touch"])
def test_yaml_makes_no_objects(tag: str, config: Path, tmp_path: Path, mark: Path) -> None:
    """Classes are named by class_path, which is checked; YAML's own tags for objects are not followed."""
    payload = f"!!{tag} [!!python/object/apply:pathlib.Path [{json.dumps(str(mark))}]]"
    hostile = tmp_path / "hostile.yaml"
    for place in ("folder: ", ""):
        hostile.write_text(f"{place}{payload}\n")
        assert main_or_exit(["fit", "--config", str(config), "--config", str(hostile)]) != 0
    hostile.write_text(f"name: {payload}\n")
    assert main(["benchmark", "run", str(hostile), "--folder", str(tmp_path / "suite")]) == 1


@door("configuration")
def test_a_class_of_another_kind_is_not_made_by_yaml(config: Path, tmp_path: Path, mark: Path) -> None:
    """jsonargparse checks the type of a class before it calls it."""
    touch = {"class_path": "pathlib.Path", "init_args": {"args": [str(mark)]}}
    for key in ("model", "data"):
        for spec in ({"class_path": "os.system", "init_args": {"command": f"touch '{mark}'"}}, touch):
            (tmp_path / "hostile.yaml").write_text(yaml.safe_dump({key: spec}))
            assert main_or_exit(["fit", "--config", str(config), "--config", str(tmp_path / "hostile.yaml")]) != 0
            assert not mark.exists()


def main_or_exit(arguments: list[str]) -> int:
    """The exit status; jsonargparse leaves by SystemExit."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


def hostile_run(folder: Path, mark: Path) -> Path:
    """A folder of a run, each file of which is a payload."""
    folder.mkdir()
    python = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{json.dumps(str(mark))}]]"
    for name in ("config.yaml", "hparams.yaml"):
        (folder / name).write_text(f"model: {python}\n")
    script = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0,0,1.0\n0,1,0.5\n")
    (folder / "run.json").write_text(json.dumps({script: script}))
    side = {"text": script, "score": 0.5, "origin": script, "thing": script}
    record = {"step": 0, "direction": script, "anchor": script, "positive": side, "negatives": [side]}
    (folder / "negatives.jsonl").write_text(json.dumps(record) + "\n")
    return folder


@door("run", "output")
def test_a_run_is_not_run(tmp_path: Path, mark: Path) -> None:
    """Its settings are shown as text, and its page holds no script. What was in the page's place is not read."""
    folder = hostile_run(tmp_path / "run", mark)
    (tmp_path / "page.html").write_bytes(pickle.dumps(Pickled(mark)))
    assert main(["report", str(folder), "--title", "<script>", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page


@door("run", "output")
def test_a_link_in_a_run_has_no_file_of_others_overwritten(tmp_path: Path, mark: Path) -> None:
    folder = hostile_run(tmp_path / "run", mark)
    (tmp_path / "thesis.tex").write_text("mine")
    (folder / "report.html").symlink_to(tmp_path / "thesis.tex")
    assert main(["report", str(folder)]) == 0
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert not (folder / "report.html").is_symlink()


@door("run")
def test_results_of_a_benchmark_are_not_run(tmp_path: Path, mark: Path, capsys) -> None:
    for name in ("runs.parquet", "scores.parquet", "curves.parquet"):
        (tmp_path / name).write_bytes(pickle.dumps(Pickled(mark)))
    assert main(["benchmark", "report", str(tmp_path)]) == 1
    assert main(["benchmark", "compare", str(tmp_path), str(tmp_path)]) == 1
    schema = pa.schema([pa.field("x", pa.string(), metadata=pickled_type(mark))])
    for name in ("runs.parquet", "scores.parquet", "curves.parquet"):
        pq.write_table(pa.table({"x": ["a"]}, schema=schema), tmp_path / name)
    assert main(["benchmark", "report", str(tmp_path)]) == 1
    assert "was not written by `hardneg benchmark run`" in capsys.readouterr().err


@door("output")
def test_what_a_result_takes_the_place_of_is_not_read(table: MinedNegatives, tmp_path: Path, mark: Path) -> None:
    for name in ("numbers.json", "page.html"):
        (tmp_path / name).write_bytes(pickle.dumps(Pickled(mark)))
    audit = ["audit", str(tmp_path / "mined.parquet"), "--json", str(tmp_path / "numbers.json")]
    assert main([*audit, "--html", str(tmp_path / "page.html")]) == 0
    json.loads((tmp_path / "numbers.json").read_text())
    assert "<html" in (tmp_path / "page.html").read_text()
