from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from datamodules import PairsData
from tests.datamodules.test_retrieval import epochs

ROWS = [
    {"anchor": "a cat", "positive": "felines", "negative_1": "dogs", "negative_2": "cars"},
    {"anchor": "a cat", "positive": "cats", "negative_1": "birds", "negative_2": ""},
    {"anchor": "A  CAT", "positive": "purring", "negative_1": "felines", "negative_2": "dogs"},
    {"anchor": "a dog", "positive": "dogs", "negative_1": "", "negative_2": ""},
]


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ready(train: str, **options: object) -> PairsData:
    data = PairsData(train, **{"batch_size": 2, **options})
    data.setup("fit")
    return data


def texts_of(data: PairsData, lists: list[list[int]]) -> list[list[str]]:
    return [data.text_of(ids, "document") for ids in lists]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_rows_of_one_anchor_are_one_query(tmp_path: Path, name: str) -> None:
    data = ready(write(tmp_path / name, ROWS))
    assert data.text_of(data.table.anchors, "query") == ["a cat", "A  CAT", "a dog"]
    cats = ["felines", "cats", "purring"]
    assert texts_of(data, data.table.positives.to_lists()) == [cats, cats, ["dogs"]]
    assert sorted(data.corpus()[1]) == ["birds", "cars", "cats", "dogs", "felines", "purring"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_negatives_travel_and_are_never_known_positives(tmp_path: Path, num_workers: int) -> None:
    data = ready(write(tmp_path / "a.jsonl", ROWS), num_workers=num_workers, batch_size=3)
    (batch,) = data.train_dataloader()
    drawn: dict[int, set[str]] = {row: set() for row in range(3)}
    for place, text in zip(batch.items["drawn"].rows.tolist(), batch.inputs["drawn"], strict=True):
        drawn[int(batch.rows[place])].add(text)
    assert drawn == {0: {"dogs", "cars", "birds"}, 1: {"dogs"}, 2: set()}  # "felines" is a positive of "a cat"


def test_how_many_negatives(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    assert all(len(batch.items["drawn"]) <= 2 for batch in ready(file, num_negatives=1).train_dataloader())
    assert all("drawn" not in batch.items for batch in ready(file, num_negatives=0).train_dataloader())
    plain = write(tmp_path / "plain.jsonl", [{"anchor": row["anchor"], "positive": row["positive"]} for row in ROWS])
    assert all("drawn" not in batch.items for batch in ready(plain).train_dataloader())
    with pytest.raises(ValueError, match=r"num_negatives=2, but no row has a negative\. Name their columns with data"):
        ready(plain, num_negatives=2)


def test_lists_and_columns_of_other_names(tmp_path: Path) -> None:
    rows = [
        {"query": "a cat", "pos": ["cats", "felines"], "neg": ["dogs", "cars", "birds"]},
        {"query": "a dog", "pos": ["dogs"], "neg": []},
    ]
    data = ready(write(tmp_path / "a.jsonl", rows), anchor="query", positive="pos", negatives=["neg"])
    assert texts_of(data, data.table.positives.to_lists()) == [["cats", "felines"], ["dogs"]]
    assert sum(len(batch.items["drawn"]) for batch in data.train_dataloader()) == 3


def test_a_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert len(ready(str(tmp_path / "saved")).table) == 3


def test_evaluation_ranks_the_documents_of_all_files(tmp_path: Path) -> None:
    val = write(tmp_path / "val.jsonl", [{"anchor": "a bird", "positive": "birds", "negative": "planes"}])
    data = ready(write(tmp_path / "a.jsonl", ROWS), val=val)
    assert list(data.queries("val")[1]) == ["a bird"]
    (names,) = data.qrels("val").values()
    assert [data.corpus()[1][data.names("document").position(name)] for name in names] == ["birds"]
    assert "planes" in list(data.corpus()[1])
    assert len(data.table) == 3  # what stands in the validation file trains nothing
    assert len(data.val_dataloader()) == 1
    assert data.test_dataloader() == []


def test_names_stay_when_rows_move(tmp_path: Path) -> None:
    one, other = (ready(write(tmp_path / f"{at}.jsonl", rows)) for at, rows in enumerate((ROWS, ROWS[::-1])))
    for space in ("query", "document"):
        assert list(one.names(space)) != list(other.names(space))
        assert set(one.names(space)) == set(other.names(space))


def test_epochs_and_seeds(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ROWS)
    orders = epochs(ready(file, seed=1), 8)
    assert all(sorted(row for row, _ in order) == [0, 1, 2] for order in orders)
    assert epochs(ready(file, seed=1, num_workers=2), 2) == orders[:2]
    assert len({dict(order)[0] for order in orders}) > 1  # another positive in another epoch


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"anchor": " ", "positive": "a"}, {}, r"a\.jsonl, line 5: field 'anchor' is empty; every row needs an anchor"),
        (
            {"anchor": "a", "positive": []},
            {},
            r"a\.jsonl, line 5: field 'positive' is empty; every row needs a positive",
        ),
        ({"query": "a", "positive": "b"}, {}, r"line 5: has no field 'anchor'; its fields are query, positive"),
        ({"anchor": "a"}, {}, r"line 5: has no field 'positive'; its fields are anchor"),
        ({"anchor": "a", "positive": "b", "negative": 3}, {}, r"line 5: field 'negative' must be text, got 3 \(int\)"),
        ({"anchor": "a", "positive": "b"}, {"negatives": ["negative_1"]}, r"line 5: has no field 'negative_1'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict, options: dict, message: str) -> None:
    file = write(tmp_path / "a.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=message):
        ready(file, **options)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PairsData\(num_negatives=-1\): wants at least 0, or null for all"):
        PairsData("a.jsonl", num_negatives=-1)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl does not exist"):
        ready(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="no query of the split 'train' has a positive"):
        ready(write(tmp_path / "empty.jsonl", []))


words = st.sampled_from(["a", "b", "c", "A", "b "])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(rows=st.lists(st.fixed_dictionaries({"anchor": words, "positive": words, "negative": words}), min_size=1))
def test_what_travels_is_right_for_any_table(tmp_path: Path, rows: list[dict]) -> None:
    def same(text: str) -> str:
        return text.strip().lower()

    data = ready(write(tmp_path / "a.jsonl", rows), batch_size=64)
    (batch,) = data.train_dataloader()
    anchors = batch.inputs["query"]
    assert sorted(anchors) == sorted({row["anchor"] for row in rows})
    for anchor, positive, known in zip(anchors, batch.inputs["document"], batch.known.to_lists(), strict=True):
        allowed = {same(row["positive"]) for row in rows if same(row["anchor"]) == same(anchor)}
        assert same(positive) in allowed
        assert {same(text) for text in data.text_of(known, "document")} == allowed
    for place, text in zip(batch.items["drawn"].rows.tolist(), batch.inputs["drawn"], strict=True):
        positives = {same(row["positive"]) for row in rows if same(row["anchor"]) == same(anchors[place])}
        assert same(text) not in positives
        assert any(row["anchor"] == anchors[place] and row["negative"] == text for row in rows)


def test_set_up_holds_no_text_as_a_python_string(tmp_path: Path) -> None:
    """20 MB of text; what Python holds is names, hashes and blocks."""
    filling = "many words " * 90
    rows = [{"anchor": f"{n} {filling}", "positive": f"{n} answer {filling}"} for n in range(10_000)]
    file = write(tmp_path / "a.jsonl", rows)
    del rows
    tracemalloc.start()
    try:
        data = ready(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(data.table) == 10_000
    assert peak < 12e6
