"""`mine` keeps its promises: what is kept, what is dropped and by which rule, and what is refused."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from miners.index import FaissIndex, TorchIndex
from miners.offline import (
    AbsoluteMargin,
    Dense,
    Guide,
    Lexical,
    MaxScore,
    MinedNegatives,
    MinScore,
    NearDuplicate,
    Random,
    RankWindow,
    RelativeMargin,
    Rescore,
    SameContent,
    Softmax,
    mine,
)
from miners.ragged import Ragged
from miners.store import Store


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def gaussian(rows: int, dim: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def found(mined: MinedNegatives) -> list[list[int]]:
    """Document ids by query."""
    lists: dict[int, list[int]] = {query: [] for query in mined.queries["query_id"].to_pylist()}
    for row in mined.table.to_pylist():
        lists[row["query_id"]].append(row["doc_id"])
    return list(lists.values())


# the worked example of the method's specification: two queries, seven documents in the plane
QUERIES = directions(0, 90)
CORPUS = directions(10, 100, 15, 40, 70, 60, 0)
KNOWN = [[0, 3], [1]]


@pytest.mark.parametrize("index", ["torch", "Flat"])
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [[6, 2], [4, 5]]),
        ([RelativeMargin(0.05)], [[5, 4], [5, 3]]),
        ([AbsoluteMargin(0.0)], [[5, 4], [4, 5]]),
        ([RankWindow(2)], [[2, 5], [5, 3]]),
    ],
)
def test_the_worked_example(index: str, filters: list, expected: list) -> None:
    if index == "Flat":
        pytest.importorskip("faiss")
    mined = mine(
        QUERIES, CORPUS, KNOWN, num_negatives=2, search_depth=7, filters=filters, ranks="survivors", index=index
    )
    assert found(mined) == expected


def test_a_window_of_raw_ranks_counts_the_positives() -> None:
    # query 0 retrieves 6, 0, 2, 3, 5, 4, 1; its positives are 0 and 3
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=2, search_depth=7, filters=[RankWindow(2, 5)])
    assert found(mined)[0] == [2, 5]
    assert mined.table["rank"].to_pylist()[:2] == [3, 5]


def test_every_row_says_where_it_came_from() -> None:
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=2, search_depth=7, filters=[RelativeMargin(0.05)])
    first = mined.table.to_pylist()[0]
    assert first["query_id"] == 0
    assert first["doc_id"] == 5
    assert first["rank"] == 5
    assert first["score"] == pytest.approx(math.cos(math.radians(60)), abs=1e-6)
    assert first["positive_score"] == pytest.approx(math.cos(math.radians(40)), abs=1e-6)  # the lowest of the two
    assert (first["source"], first["relaxed"]) == ("dense", None)
    query = mined.queries.to_pylist()[0]
    assert query["found"] == 2
    assert (query["dropped_known"], query["dropped_relative_margin"]) == (2, 2)
    assert query["positive_ids"] == [0, 3]


def test_static_mining_laws() -> None:
    """No positive in a list, full length, scores never rise, the first is brute force's first non-positive."""
    queries, corpus = gaussian(40, 16, 0), gaussian(300, 16, 1)
    known = [[3 * row, 3 * row + 1] for row in range(40)]
    mined = mine(queries, corpus, known, num_negatives=20)
    scores = np.array(mined.table["score"].to_pylist()).reshape(40, 20)
    assert (np.diff(scores, axis=1) <= 0).all()
    products = queries.double() @ corpus.double().T
    for row, documents in enumerate(found(mined)):
        assert not set(documents) & set(known[row])
        products[row, known[row]] = -2
        assert documents == products[row].topk(20).indices.tolist()


def test_a_stored_score_is_the_float64_product_whatever_the_index_and_chunk() -> None:
    queries, corpus = gaussian(50, 24, 0), gaussian(400, 24, 1)
    exact = (queries.double() @ corpus.double().T).float()
    specs = ["torch"]
    try:
        import faiss  # noqa: F401

        specs.append("Flat")
    except ImportError:
        pass
    tables = [
        mine(queries, corpus, [[0]] * 50, num_negatives=9, index=spec, chunk=chunk).table
        for spec in specs
        for chunk in (1, 7, 50)
    ]
    for table in tables:
        assert table.equals(tables[0])
    rows, documents = tables[0]["query_id"].to_numpy(), tables[0]["doc_id"].to_numpy()
    assert torch.equal(torch.tensor(tables[0]["score"].to_numpy()), exact[rows, documents])


def test_margins_keep_their_sense_for_negative_scores() -> None:
    queries, corpus = directions(0.0), directions(120, 121, 118, 125, 100)
    # positive: cos 120 = -0.5; 5 % below it is -0.525; cos 121 = -0.515 is too close, cos 125 = -0.574 is not
    mined = mine(queries, corpus, [[0]], num_negatives=4, search_depth=5, filters=[RelativeMargin(0.05)])
    assert found(mined) == [[3]]
    mined = mine(queries, corpus, [[0]], num_negatives=4, search_depth=5, filters=[AbsoluteMargin(0.01)])
    assert found(mined) == [[1, 3]]


@pytest.mark.parametrize(("positive", "expected"), [("lowest", [1]), ("mean", [4, 1]), ("highest", [3, 4, 1])])
def test_which_of_several_positives_counts(positive: str, expected: list[int]) -> None:
    queries, corpus = directions(0), directions(10, 80, 70, 30, 60)
    mined = mine(
        queries, corpus, [[0, 2]], num_negatives=3, search_depth=5, filters=[AbsoluteMargin(0.0, positive=positive)]
    )
    assert found(mined) == [expected]


def test_score_bounds() -> None:
    mined = mine(QUERIES, CORPUS, KNOWN, num_negatives=2, search_depth=7, filters=[MaxScore(0.9), MinScore(0.45)])
    assert found(mined) == [[5], [5, 3]]
    assert mined.dropped() == {"not_found": 0, "known": 3, "max_score": 3, "min_score": 5}


def test_duplicates_of_a_positive_by_content_and_by_nearness() -> None:
    queries, corpus = directions(0), directions(10, 11, 30, 31, 60)
    content = [7, 7, 8, 9, -1]
    mined = mine(queries, corpus, [[0, 4]], num_negatives=3, search_depth=5, filters=[SameContent(content)])
    assert found(mined) == [[2, 3]]
    near = NearDuplicate(math.cos(math.radians(1.5)))
    mined = mine(queries, corpus, [[0, 2]], num_negatives=3, search_depth=5, filters=[near])
    assert found(mined) == [[4]]


def test_unknown_content_is_equal_to_nothing() -> None:
    mined = mine(directions(0), directions(10, 20), [[0]], num_negatives=1, filters=[SameContent([-1, -1])])
    assert found(mined) == [[1]]


def test_a_guide_drops_what_it_holds_for_positive() -> None:
    guide = Guide(directions(0), directions(20, 10, 50, 80, 25), relative_margin=0.0)
    mined = mine(directions(0), directions(10, 20, 30, 40, 50), [[0]], num_negatives=4, search_depth=5, filters=[guide])
    assert found(mined) == [[2, 3, 4]]
    assert mined.table["guide_score"].to_pylist() == pytest.approx([math.cos(math.radians(x)) for x in (50, 80, 25)])


def test_rescoring_by_ids_and_by_items() -> None:
    table = torch.tensor([[0.9, 0.1, 0.95, 0.5, 0.6]])
    corpus = directions(10, 20, 30, 40, 50)
    by_rows = Rescore(lambda queries, documents: table[queries, documents])
    texts = ["a", "b", "c", "d", "e"]
    by_items = Rescore(lambda pairs: [float(table[0, texts.index(text)]) for _, text in pairs], ["q"], texts, 2)
    for rescore in (by_rows, by_items):
        mined = mine(
            directions(0), corpus, [[0]], num_negatives=4, search_depth=5, filters=[rescore, AbsoluteMargin(0.0)]
        )
        assert found(mined) == [[4, 3, 1]]  # the new order; 2 beats the positive
        assert mined.table["rescore"].to_pylist() == pytest.approx([0.6, 0.5, 0.1])
        assert mined.table["score"].to_pylist()[0] == pytest.approx(math.cos(math.radians(50)))
        assert mined.table["rank"].to_pylist() == [5, 4, 2]
    with pytest.raises(ValueError, match="one each"):
        mine(directions(0), corpus, [[0]], num_negatives=1, filters=[Rescore(lambda q, d: torch.zeros(1))])


def test_too_few_survivors_are_treated_as_asked() -> None:
    def run(too_few: str) -> MinedNegatives:
        rules = [MaxScore(0.97), RelativeMargin(0.05)]
        return mine(QUERIES, CORPUS, KNOWN, num_negatives=3, search_depth=7, filters=rules, too_few=too_few)

    assert found(run("short")) == [[5, 4, 1], [5, 3, 2]]
    strict = mine(QUERIES, CORPUS, KNOWN, num_negatives=4, search_depth=7, filters=[RelativeMargin(0.05)])
    assert [len(one) for one in found(strict)] == [3, 4]
    rules = {"num_negatives": 4, "search_depth": 7, "filters": [MaxScore(0.97), RelativeMargin(0.05)]}
    assert found(mine(QUERIES, CORPUS, KNOWN, too_few="drop", **rules))[0] == []
    padded = mine(QUERIES, CORPUS, KNOWN, too_few="pad", **rules)
    assert found(padded)[0] == [5, 4, 1, None]
    assert padded.queries["found"].to_pylist() == [3, 4]
    assert padded.table["score"].to_pylist()[3] is None
    relaxed = mine(QUERIES, CORPUS, KNOWN, too_few="relax", **rules)
    assert found(relaxed)[0] == [2, 5, 4, 1]  # 6 was dropped by MaxScore, 2 by the later rule: that is relaxed first
    assert relaxed.table["relaxed"].to_pylist()[:4] == ["relative_margin", None, None, None]
    assert "let in by relaxing a rule: 1" in relaxed.summary()


def test_positives_and_duplicates_never_come_back() -> None:
    rules = [SameContent([1, 2, 1, 2]), MaxScore(-0.99)]
    mined = mine(directions(0), directions(0, 10, 20, 30), [[0]], num_negatives=3, filters=rules, too_few="relax")
    assert found(mined) == [[1, 3]]


def test_random_draws_are_fair_and_depend_on_nothing_but_the_seed() -> None:
    queries, corpus = gaussian(2000, 8, 0), gaussian(21, 8, 1)
    known = [[0]] * 2000
    run = {"num_negatives": 5, "search_depth": 21, "sampling": Random()}
    mined = mine(queries, corpus, known, seed=3, **run)
    assert mined.table.equals(mine(queries, corpus, known, seed=3, chunk=77, **run).table)
    assert not mined.table.equals(mine(queries, corpus, known, seed=4, **run).table)
    counts = np.bincount(mined.table["doc_id"].to_numpy(), minlength=21)[1:]
    assert counts.sum() == 10_000
    assert (abs(counts - 500) < 5 * math.sqrt(500)).all()
    assert all(len(set(one)) == 5 for one in found(mined))


def test_softmax_draws_follow_the_scores() -> None:
    queries = directions(0).repeat(4000, 1)
    corpus = directions(90, 0, 60)  # scores 0 (the positive), 1 and 0.5
    mined = mine(queries, corpus, [[0]] * 4000, num_negatives=1, search_depth=3, sampling=Softmax(0.5))
    share = float(np.mean(mined.table["doc_id"].to_numpy() == 1))
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_sources_share_by_quota_without_repeating() -> None:
    pytest.importorskip("bm25s")
    texts = ["red apple pie", "green apple", "blue sky", "apple tart red", "night sky", "stone"]
    queries = ["red apple"]
    sources = [Dense("torch", quota=2), Lexical(queries, texts, quota=2)]
    mined = mine(
        directions(0), directions(0, 80, 10, 20, 30, 40), [[0]], num_negatives=4, sources=sources, search_depth=6
    )
    assert list(zip(mined.table["doc_id"].to_pylist(), mined.table["source"].to_pylist(), strict=True)) == [
        (2, "dense"),
        (3, "dense"),
        (1, "bm25"),  # 3 is taken, 0 is the positive, and no other document shares a word
    ]
    assert mined.queries.to_pylist()[0]["dropped_bm25_taken"] == 1
    assert mined.table["score"].to_pylist()[2] == pytest.approx(math.cos(math.radians(80)), abs=1e-6)
    with pytest.raises(ValueError, match="quotas are"):
        mine(directions(0), directions(0, 1), [[0]], num_negatives=3, sources=[Dense(quota=1)])


def test_names_and_ids_travel() -> None:
    queries = Store(QUERIES, torch.tensor([70, 30]), "query", names=["first", "second"])
    corpus = Store(CORPUS, torch.tensor([10, 11, 12, 13, 14, 15, 16]))
    mined = mine(queries, corpus, [[10, 13], [11]], num_negatives=1)
    assert mined.table["query_id"].to_pylist() == ["first", "second"]
    assert mined.table["doc_id"].to_pylist() == [16, 14]


def test_every_kind_of_input_gives_the_same_table(tmp_path) -> None:
    queries, corpus = gaussian(30, 8, 0), gaussian(200, 8, 1)
    known = Ragged.from_lists([[row] for row in range(30)])
    expected = mine(queries, corpus, known, num_negatives=4).table
    np.save(tmp_path / "q.npy", queries.numpy())
    np.save(tmp_path / "c.npy", corpus.numpy())
    kinds = [
        (queries.numpy(), corpus.numpy()),
        (tmp_path / "q.npy", str(tmp_path / "c.npy")),
        (np.load(tmp_path / "q.npy", mmap_mode="r"), Store(tmp_path / "c.npy")),
        (iter(queries.split(7)), (block.numpy() for block in corpus.split(33))),
    ]
    for some, others in kinds:
        assert mine(some, others, (known.offsets, known.values), num_negatives=4).table.equals(expected)
    assert mine(queries, corpus, known, num_negatives=4, index=TorchIndex(Store(corpus), "cpu")).table.equals(expected)


def test_an_approximate_index_that_finds_too_little_gives_fewer() -> None:
    pytest.importorskip("faiss")
    store = Store(gaussian(500, 8, 1))
    index = FaissIndex(store, "IVF32,Flat", "cpu", "nprobe=1")
    mined = mine(gaussian(20, 8, 0), store, [[0]] * 20, num_negatives=100, index=index)
    assert mined.dropped()["not_found"] > 0
    assert max(mined.queries["found"].to_pylist()) < 100
    assert None not in mined.table["doc_id"].to_pylist()


def test_what_cannot_be_mined_is_refused_in_one_sentence(tmp_path) -> None:
    def refused(match: str, queries=QUERIES, corpus=CORPUS, known=KNOWN, **settings) -> None:
        with pytest.raises(ValueError, match=match):
            mine(queries, corpus, known, **{"num_negatives": 2} | settings)

    refused("1 of 2 queries have no known positive, the first is query 1", known=[[0], []])
    refused("a known positive is not in the corpus.*no id 99", known=[[0], [99]])
    refused("2 queries and positives of 1", known=[[0]])
    refused("queries have 3 dims, documents 2", queries=torch.ones(2, 3))
    refused("row 1 .id 1. holds NaN", queries=torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
    refused("corpus has 7 documents", search_depth=8)
    refused(
        "cannot give num_negatives=2 after skipping 5 ranks; use at least 7", search_depth=6, filters=[RankWindow(6)]
    )
    refused("num_negatives=0", num_negatives=0)
    refused("a filter stands twice", filters=[MaxScore(1), MaxScore(2)])
    refused("ranks='both'", ranks="both")
    refused("too_few='fill'", too_few="fill")
    refused("SameContent got 2 hashes for 7 documents", filters=[SameContent([1, 2])])
    refused("both must list the same documents", filters=[Guide(QUERIES, QUERIES)])
    refused("ids differ", index=TorchIndex(Store(CORPUS[:3]), "cpu"))
    with pytest.raises(ValueError, match="id 5 twice"):
        mine(QUERIES, Store(CORPUS, torch.tensor([5, 5, 1, 2, 3, 4, 6])), KNOWN, num_negatives=2)
    with pytest.raises(ValueError, match=r"RelativeMargin\(margin=1\)"):
        RelativeMargin(1)


def test_how_often_screening_was_not_enough_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    mine(gaussian(100, 32, 0), gaussian(500, 32, 1), [[0]] * 100, num_negatives=1, index="torch")
    assert "dense: 0 of 100 searches were done again in float32 (0.00%)" in caplog.text


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    mine(
        gaussian(10, 4, 0),
        gaussian(30, 4, 1),
        [[0]] * 10,
        num_negatives=1,
        chunk=4,
        progress=lambda *now: told.append(now),
    )
    assert told == [(4, 10), (8, 10), (10, 10)]


RUN = """
import resource, sys
import torch
from torch.nn.functional import normalize
from miners.offline import Random, RelativeMargin, mine

torch.set_num_threads(1)
def gaussian(rows, dim, seed):
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
print("ready", flush=True)
mine(gaussian(3000, 16, 0), gaussian(4000, 16, 1), [[row] for row in range(3000)], num_negatives=5,
     filters=[RelativeMargin(0.01)], sampling=Random(), chunk=50, out=sys.argv[1])
"""


def child(*arguments: str) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_killed_at_ten_moments_and_resumed_it_gives_the_same_bytes(tmp_path) -> None:
    whole = tmp_path / "whole.parquet"
    assert child(str(whole)).wait() == 0
    out = tmp_path / "broken.parquet"
    moments = np.random.default_rng(0).uniform(0.02, 0.25, 10)
    killed = 0
    for moment in moments:
        run = child(str(out))
        assert run.stdout is not None
        run.stdout.readline()
        try:
            run.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            killed += 1
            assert not out.exists() or MinedNegatives.load(out)
    assert killed >= 5
    assert child(str(out)).wait() == 0
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "broken.queries.parquet").read_bytes() == (tmp_path / "whole.queries.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        "broken.manifest.json",
        "broken.parquet",
        "broken.queries.parquet",
        "whole.manifest.json",
        "whole.parquet",
        "whole.queries.parquet",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file-size limits")
def test_a_full_disk_is_told_and_the_run_goes_on_later(tmp_path) -> None:
    out = tmp_path / "mined.parquet"
    run = child(str(out), "2000")
    _, errors = run.communicate()
    assert run.returncode == 1
    assert "no room on the disk. What is finished is kept" in errors
    assert not out.exists()
    assert not list((tmp_path / "mined.parquet.parts").glob(".*"))
    assert child(str(out)).wait() == 0
    assert len(MinedNegatives.load(out)) > 0


def test_shards_of_an_interrupted_run_are_used_and_guarded(tmp_path, monkeypatch) -> None:
    queries, corpus, known = gaussian(40, 8, 0), gaussian(100, 8, 1), [[row] for row in range(40)]
    settings = {"num_negatives": 3, "chunk": 10, "out": tmp_path / "mined.parquet"}

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine(queries, corpus, known, progress=stop, **settings)
    with pytest.raises(ValueError, match=r"changed: fingerprints\.corpus"):
        mine(queries, corpus * 2, known, **settings)
    with pytest.raises(ValueError, match=r"changed: fingerprints\.known, settings\.seed"):
        mine(queries, corpus, [[0]] * 40, seed=1, **settings)
    with pytest.raises(ValueError, match=r"changed: settings\.filters"):
        mine(queries, corpus, known, filters=[MaxScore(0.5)], search_depth=4, **settings)
    told: list[int] = []
    mined = mine(queries, corpus, known, progress=lambda done, total: told.append(done), **settings)
    assert told == [30, 40]  # the first two shards were there
    assert mined.table.equals(mine(queries, corpus, known, num_negatives=3).table)
    anew = mine(queries, corpus * 2, known, resume=False, **settings)
    assert anew.table["doc_id"].equals(mined.table["doc_id"])


def test_an_output_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written there\. Choose another place"):
        mine(QUERIES, CORPUS, KNOWN, num_negatives=1, out=tmp_path / "file" / "mined.parquet")


def test_the_file_tells_what_made_it_but_not_when_or_where(tmp_path) -> None:
    path = tmp_path / "mined.parquet"
    mine(QUERIES, CORPUS, KNOWN, num_negatives=1, seed=5, out=path, metadata={"weights": "abc", "prompt": "query: "})
    record = MinedNegatives.load(path).metadata
    assert record["inputs"]["model"] == {"weights": "abc", "prompt": "query: "}
    assert record["settings"]["seed"] == 5
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    assert str(tmp_path) not in json.dumps(record)
    first = path.read_bytes()
    mine(QUERIES, CORPUS, KNOWN, num_negatives=1, seed=5, out=path, metadata={"weights": "abc", "prompt": "query: "})
    assert path.read_bytes() == first
