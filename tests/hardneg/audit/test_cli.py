"""`hardneg audit` counts right, guards a pipeline, and lets no document speak in its page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from datamodules.texts import content_hash
from hardneg.audit.cli import add_arguments, run
from hardneg.audit.made import NAMED, PLAIN, UNUSED, as_line, read_making
from hardneg.audit.measure import audit, hide, interval
from hardneg.cli import main
from hardneg.encoders import TextEncoder
from hardneg.mining.cli import add_arguments as add_mining_arguments
from hardneg.mining.cli import plain_arguments
from hardneg.mining.cli import run as run_mining
from hardneg.mining.inputs import read_beir
from miners.offline import MaxScore, MinedNegatives, mine
from miners.ragged import Ragged

ENCODER = ("--encoder", "tests.hardneg.mining.test_cli.Flattened")
HOSTILE = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa <script>alert(1)</script> & <img src=x onerror=alert(2)>"


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def hardneg_audit(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(one) for one in arguments]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six queries of two positives each, whose letters look alike; one document is hostile."""
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    texts = [f"{letter * 6} {number}" for letter in "abcdef" for number in (1, 2)] + [HOSTILE]
    corpus = [json.dumps({"_id": f"d{row}", "text": text}) for row, text in enumerate(texts)]
    queries = [json.dumps({"_id": f"q{row}", "text": letter * 6}) for row, letter in enumerate("abcdef")]
    judged = "".join(f"q{row // 2}\td{row}\t1\n" for row in range(12))
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def mined_from(folder: Path, *more: object) -> Path:
    parser = argparse.ArgumentParser()
    add_mining_arguments(parser)
    out = folder.parent / "mined.parquet"
    cache = folder.parent / "cache"
    arguments = [folder, "--out", out, *ENCODER, "--cache", cache, "--num-negatives", 4, *more]
    run_mining(parser.parse_args([str(one) for one in arguments]))
    return out


def test_what_the_table_tells() -> None:
    # scores: 0.5 (60 degrees) is the positive; 40 beats it, 61 is 3 % below, 65 is 15 % below, 80 is 65 % below
    mined = mine(directions(0), directions(60, 40, 61, 65, 80), [[0]], num_negatives=4)
    texts = ["same", "other", "Same ", "third", "fourth"]
    report = audit(mined, {row: content_hash(text) for row, text in enumerate(texts)})
    assert list(report["hardness"].values()) == [0.25, 0.25, 0.25, 0.25]
    assert (report["negatives"], report["known_positives"], report["equal_contents"]) == (4, 0, 1)
    assert report["use"]["documents"] == 4
    assert report["use"]["most"] == 1
    nothing = audit(mine(directions(0), directions(60, 40), [[0]], num_negatives=1, filters=[MaxScore(-1)]))
    assert (nothing["negatives"], nothing["without_negatives"]) == (0, 1)


def test_hiding_leaves_every_query_a_positive_and_takes_twins_together() -> None:
    known = Ragged.from_lists([[0, 1, 2], [3], [4, 5]])
    content = torch.tensor([10, 10, 11, 12, 13, 13])  # 0 and 1 are twins, 4 and 5 too
    for seed in range(20):
        left, query, document = hide(known, content, 0.9, seed)
        assert (left.lengths >= 1).all()
        assert query.tolist() == [0]  # only query 0 has two different positives
        assert left.to_lists()[0] in ([0, 1], [2])
        assert document.tolist() in ([2], [0])


def test_the_interval_is_the_exact_one() -> None:
    assert interval(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert interval(5, 10) == pytest.approx((0.1871, 0.8129), abs=1e-4)
    assert interval(0, 0) == (0, 1)


def test_hidden_positives_that_come_back_are_counted_and_fail_a_pipeline(folder, capsys) -> None:
    table = mined_from(folder)
    common = (
        table,
        "--folder",
        folder,
        "--cache",
        folder.parent / "cache",
        "--json",
        folder.parent / "a.json",
        *ENCODER,
    )
    assert hardneg_audit(*common) == 0
    rate = json.loads((folder.parent / "a.json").read_text())["false_negatives"]
    assert rate["hidden"] == 1
    assert rate["rate"] == 1.0  # nothing keeps the nearest document of a query out
    assert "few queries have a second positive to hide, so this says little" in capsys.readouterr().out
    assert hardneg_audit(*common, "--max-false-negative-rate", 0.5) == 1
    assert "FAILED: the false-negative rate 1.000 is above 0.5" in capsys.readouterr().out
    guarded = mined_from(folder, "--max-score", -0.99)
    assert hardneg_audit(guarded, *common[1:], "--max-false-negative-rate", 0.5) == 0


def test_staleness_is_what_the_other_checkpoint_says(tmp_path: Path, sample_folder: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    out, report, cache = tmp_path / "mined.parquet", tmp_path / "a.json", tmp_path / "cache"
    parser = argparse.ArgumentParser()
    add_mining_arguments(parser)
    run_mining(parser.parse_args([str(sample_folder), "--model", str(tiny_model), "--out", str(out), "--no-cache"]))
    common = (out, "--folder", sample_folder, "--cache", cache, "--json", report, "--no-false-negatives")
    assert hardneg_audit(*common, "--checkpoint", tiny_model) == 0
    fresh = json.loads(report.read_text())
    assert fresh["staleness"]["correlation"] == pytest.approx(1)
    assert fresh["staleness"]["hardness"] == fresh["hardness"]

    (weights,) = tiny_model.rglob("*.safetensors")  # a later checkpoint: the same folder, other weights
    tensors = load_file(weights)
    draw = torch.Generator().manual_seed(1)
    save_file({name: torch.randn(tensor.shape, generator=draw) for name, tensor in tensors.items()}, weights)
    assert hardneg_audit(*common, "--checkpoint", tiny_model) == 0
    stale = json.loads(report.read_text())["staleness"]
    encoder, mined = TextEncoder(str(tiny_model)), MinedNegatives.load(out)
    data = read_beir(str(sample_folder), "train")
    texts = data.queries_by_name() | data.documents_by_name()
    unit = {
        name: torch.nn.functional.normalize(encoder.embed([text], "query"), dim=1)[0] for name, text in texts.items()
    }
    lowest = {
        row["query_id"]: min(float(unit[row["query_id"]] @ unit[one]) for one in row["positive_ids"])
        for row in mined.queries.to_pylist()
    }
    pairs = [(row["query_id"], row["doc_id"], row["score"]) for row in mined.table.to_pylist()]
    new = [float(unit[query] @ unit[document]) for query, document, _ in pairs]
    beats = [score > lowest[query] for score, (query, *_) in zip(new, pairs, strict=True)]
    assert stale["beats_the_positive"] == pytest.approx(sum(beats) / len(pairs))
    expected = torch.corrcoef(torch.tensor([new, [old for *_, old in pairs]], dtype=torch.float64))[0, 1]
    assert stale["correlation"] == pytest.approx(float(expected), abs=1e-5)
    assert stale["correlation"] < 0.9


def test_hostile_text_is_escaped_on_the_page(folder) -> None:
    table = mined_from(folder, "--num-negatives", 10)
    page = folder.parent / "audit.html"
    assert hardneg_audit(table, "--folder", folder, "--cache", folder.parent / "cache", "--html", page) == 0
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched
    assert "data:image/png;base64," in text


def test_wrong_uses_are_told(folder, tmp_path) -> None:
    table = mined_from(folder)
    with pytest.raises(ValueError, match="need the texts: give --folder"):
        hardneg_audit(table, "--max-false-negative-rate", 0.1)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        hardneg_audit(tmp_path / "none.parquet")
    (folder / "queries.jsonl").write_text('{"_id": "q9", "text": "other"}')
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td0\t1\n")
    with pytest.raises(ValueError, match=r"names 'q0', which .* does not have"):
        hardneg_audit(table, "--folder", folder)


def test_models_that_a_table_names_are_named_by_the_user(folder, capsys) -> None:
    """Without a model the rest is audited, and a sentence says what to add."""
    table = mined_from(folder, "--relative-margin", 0.05, "--encoder-args", '{"dim": 12}')
    common = (table, "--folder", folder, "--cache", folder.parent / "cache", "--json", folder.parent / "a.json")
    assert hardneg_audit(*common) == 0
    out = capsys.readouterr().out
    assert "how it was mined, as the table says: encoder 'tests.hardneg.mining.test_cli.Flattened'" in out
    assert "encoder_args {'dim': 12}, weights " in out
    assert "relative_margin 0.05" in out
    assert "not estimated; models that a table names are not loaded; to mine it again, give --encoder and" in out
    assert "false_negatives" not in json.loads((folder.parent / "a.json").read_text())
    with pytest.raises(ValueError, match=r"--max-false-negative-rate: .* give --encoder-args \(the table says:"):
        hardneg_audit(*common, *ENCODER, "--max-false-negative-rate", 0.5)
    assert hardneg_audit(*common, *ENCODER, "--encoder-args", '{"dim": 12}') == 0
    report = json.loads((folder.parent / "a.json").read_text())
    assert report["false_negatives"]["other_weights"] is False
    assert report["made"]["changed"] == {"num_negatives": 4, "relative_margin": 0.05, "search_depth": 13}
    assert "other weights" not in capsys.readouterr().out


def test_other_weights_than_those_of_the_table_are_told(folder, capsys) -> None:
    table = mined_from(folder)
    common = (table, "--folder", folder, "--cache", folder.parent / "cache")
    assert hardneg_audit(*common, *ENCODER, "--encoder-args", '{"seed": 1}') == 0
    assert "the model has other weights, or other prompts, than the table names" in capsys.readouterr().out


def test_a_table_mined_with_judges_needs_them_named(folder, tiny_model, capsys) -> None:
    table = mined_from(folder, "--guide", tiny_model)
    common = (table, "--folder", folder, "--cache", folder.parent / "cache", *ENCODER)
    assert hardneg_audit(*common) == 0
    assert "to mine it again, give --mined-guide (the table says:" in capsys.readouterr().out
    assert hardneg_audit(*common, "--mined-guide", tiny_model) == 0
    assert "hidden positives came back" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--mined-cross-encoder: .* was mined without one; leave it out"):
        hardneg_audit(*common, "--mined-cross-encoder", tiny_model)


def test_every_option_of_mining_is_plain_or_named_or_a_place() -> None:
    """A new option of `hardneg mine` must be put on one of the lists, or the audit of a table would refuse it."""
    parser = argparse.ArgumentParser()
    add_mining_arguments(parser)
    recorded = plain_arguments(parser.parse_args(["--out", "x"]))
    assert {*PLAIN, *NAMED, *UNUSED} == recorded.keys()
    for action in parser._actions:
        if (plain := PLAIN.get(action.dest)) is not None:
            assert plain.choices == tuple(action.choices or ()), action.dest
            assert plain.kind is (action.type or type(action.const) if action.const is not None else action.type or str)
            assert plain.fits(action.default), action.dest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_negatives", 0),
        ("num_negatives", True),
        ("num_negatives", "5"),
        ("num_negatives", 10**9),
        ("first_rank", -1),
        ("relative_margin", "0.05"),
        ("relative_margin", float("nan")),
        ("temperature", 0.0),
        ("dot", "yes"),
        ("sampling", "os.system"),
        ("positive", ["lowest"]),
        ("index", "Flat" * 99),
        ("index", "IVF99999999,Flat"),
        ("index", "/elsewhere/index"),
        ("query_prompt", {"class_path": "os.system"}),
        ("query_prompt", "a" * 5000),
        ("device", "cpu"),
        ("trust_remote_code", True),
        ("\x1b[2J", 1),
    ],
)
def test_what_is_no_plain_value_is_not_used(name: str, value: object) -> None:
    metadata = {"inputs": {"model": {"arguments": {name: value}}}, "settings": {"search_depth": 5}}
    making = read_making(metadata, Path("t.parquet"))
    assert making.options is None
    assert making.problem.startswith("t.parquet: its metadata: ")
    assert name in making.problem or "\\x1b[2J" in making.problem
    assert as_line(making.as_dict({})).isprintable()


@pytest.mark.parametrize(
    "index", ["auto", "torch", "Flat", "IVF1024,Flat", "OPQ16_64,IVF1000(HNSW32),PQ16x4fs", "HNSW32"]
)
def test_indices_that_a_table_may_name(index: str) -> None:
    assert PLAIN["index"].fits(index)


@pytest.mark.parametrize(
    "metadata", [{}, {"inputs": 1}, {"inputs": {"model": []}}, {"inputs": {"model": {"arguments": 7}}}]
)
def test_a_table_that_does_not_say_how_it_was_mined(metadata: dict) -> None:
    making = read_making(metadata, Path("t.parquet"))
    assert making.options is None
    assert making.problem


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_place_that_cannot_be_written_is_named(option: str, folder: Path, capsys) -> None:
    out = folder / "nowhere" / "audit.out"
    assert main(["audit", str(mined_from(folder)), option, str(out)]) == 1
    assert "audit.out: its folder does not exist. Create it, or choose another place" in capsys.readouterr().err
