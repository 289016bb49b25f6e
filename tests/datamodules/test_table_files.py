from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.table_files import Columns, read_graph, read_tables
from tests.tables import HEADER, flows, write_csv, write_graph

ROWS: list[list[object]] = [[1, "tcp", 2.5, True, "benign"], [3, "udp", 4.5, False, "dos"], [5, "", 6.5, True, "dos"]]
NAMES = ["packets", "protocol", "rate", "flag", " Label"]


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS, NAMES)
    write_csv(tmp_path / "b.csv.gz", ROWS, NAMES)
    columns = {name.strip(): list(column) for name, column in zip(NAMES, zip(*ROWS, strict=True), strict=True)}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    for name in ("a.csv", "b.csv.gz", "c.parquet"):
        table = read_tables(tmp_path / name, "Label")  # CICIDS' names begin with a space
        assert list(table.numbers) == ["packets", "rate", "flag"]
        assert table.numbers["flag"].tolist() == [1, 0, 1]
        assert table.texts["protocol"].tolist() == ["tcp", "udp", ""]
        assert table.labels.tolist() == ["benign", "dos", "dos"]
        assert table.names == tuple(f"{name} row {row}" for row in (1, 2, 3))


def test_several_files_are_one_table(tmp_path: Path) -> None:
    files = [str(write_csv(tmp_path / f"{name}.csv", ROWS, NAMES)) for name in "ab"]
    table = read_tables(files, "Label", drop=["flag"])
    assert len(table) == 6
    assert "flag" not in table.numbers
    assert table.names[3] == "b.csv row 1"


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in "uv":
        (tmp_path / name).mkdir()
    files = [str(write_csv(tmp_path / f"{name}.csv", ROWS, NAMES)) for name in ("u/f", "v/f", "g")]
    names = read_tables(files, "Label").names
    assert names[::3] == (f"{files[0]} row 1", f"{files[1]} row 1", "g.csv row 1")
    assert len(set(names)) == 9


def test_a_split_is_of_all_files_or_of_none(tmp_path: Path) -> None:
    rows = [[1, "train", "a"], [2, "test", "b"]]
    both = [write_csv(tmp_path / "a.csv", rows, ["x", "split", "label"])]
    both.append(write_csv(tmp_path / "b.csv", [[1, "a"]], ["x", "label"]))
    with pytest.raises(ValueError, match=r"one of .*a.csv and .*b.csv alone says of which split"):
        read_tables([str(file) for file in both], "label")
    table = read_tables(both[0], "label", drop=["split"])
    assert table.split is None
    assert list(table.numbers) == ["x"]


def test_what_is_neither_number_nor_category_is_refused(tmp_path: Path) -> None:
    dated = write_csv(tmp_path / "dated.csv", [["2017-07-03 08:55:58", "a"]], ["time", "label"])
    with pytest.raises(ValueError, match=r"dated.csv, column 'time': holds timestamp\[s\].*data.init_args.drop"):
        read_tables(dated, "label")
    assert read_tables(dated, "label", drop=["time"]).labels.tolist() == ["a"]
    columns = pa.table({"price": pa.array([1, 2], pa.decimal128(8, 2)), "label": ["a", "b"]})
    pq.write_table(columns, tmp_path / "priced.parquet")
    with pytest.raises(ValueError, match="column 'price': holds decimal128"):
        read_tables(tmp_path / "priced.parquet", "label")


def test_names_of_rows_are_no_categories(tmp_path: Path) -> None:
    rows: list[list[object]] = [[f"flow-{row}", f"host {row % 20}", row, "a"] for row in range(30)]
    table = read_tables(write_csv(tmp_path / "ids.csv", rows, ["flow", "host", "x", "label"]), "label")
    with pytest.raises(ValueError, match=r"'flow' has 30 values in 30 training rows, such as 'flow-0' \(ids.csv row 1"):
        Columns.fit(table)
    without = read_tables(tmp_path / "ids.csv", "label", drop=["flow"])
    assert Columns.fit(without).matrix(without).shape == (30, 21)


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf"])
def test_missing_numbers_leave_with_their_labels(tmp_path: Path, value: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [list(row) for row in ROWS]
    rows[1][2] = value
    file = write_csv(tmp_path / "flows.csv", rows, NAMES)
    with pytest.raises(ValueError, match=r"flows.csv, column 'rate', row 2: .* \(in 1 of 3 rows\).*missing: drop"):
        read_tables(file, "Label")
    with caplog.at_level(logging.INFO):
        table = read_tables(file, "Label", missing="drop")
    assert table.labels.tolist() == ["benign", "dos"]  # the published code drops features alone: its labels are others'
    assert table.names == ("flows.csv row 1", "flows.csv row 3")
    assert "1 of 3 rows lack a number" in caplog.text


def test_messages(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "flows.csv", ROWS, NAMES)
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv does not exist"):
        read_tables(tmp_path / "nowhere.csv", "Label")
    with pytest.raises(ValueError, match="has no column 'attack'; it has packets, protocol, rate, flag, Label"):
        read_tables(file, "attack")
    with pytest.raises(ValueError, match="has no column 'time'"):
        read_tables(file, "Label", drop=["time"])
    other = write_csv(tmp_path / "other.csv", [row[1:] for row in ROWS], NAMES[1:])
    with pytest.raises(
        ValueError, match=r"other.csv and .*flows.csv differ in the column 'packets', which is a number"
    ):
        read_tables([str(file), str(other)], "Label")
    with pytest.raises(ValueError, match="row 2: no label in the column 'category'"):
        read_tables(write_csv(tmp_path / "open.csv", [[1, "a"], [2, ""]], ["x", "category"]), "category")
    (tmp_path / "flows.txt").write_text("a")
    with pytest.raises(ValueError, match="unknown format"):
        read_tables(tmp_path / "flows.txt", "Label")
    with pytest.raises(ValueError, match="holds no row"):
        read_tables(write_csv(tmp_path / "empty.csv", [], NAMES), "Label")
    empty = write_csv(tmp_path / "nan.csv", [["nan", "a"], ["nan", "b"]], ["x", "category"])
    with pytest.raises(ValueError, match="every row lacks a number"):
        read_tables(empty, "category", missing="drop")


def test_a_graphs_features_and_splits(tmp_path: Path) -> None:
    table = read_graph(write_graph(tmp_path / "graph.npz"))
    assert len(table) == 60
    assert len(table.numbers) == 12
    assert table.split is not None
    assert {name: int((table.split == name).sum()) for name in ("train", "val", "test")} == {
        "train": 30,
        "val": 10,
        "test": 20,
    }
    assert float(np.stack(list(table.numbers.values()), 1)[4, 1]) >= 1  # node 4 is of class 1
    np.savez(tmp_path / "half.npz", labels=np.arange(3))
    with pytest.raises(ValueError, match=r"half.npz has no array 'feat_data'; it has labels"):
        read_graph(tmp_path / "half.npz")


def test_columns_are_learnt_once(tmp_path: Path) -> None:
    train = read_tables(write_csv(tmp_path / "train.csv", flows(50, 0, ("dos",))), "category", ["note"])
    test = read_tables(write_csv(tmp_path / "test.csv", flows(50, 1, ("probe",))), "category", ["note"])
    columns = Columns.fit(train)
    matrix = columns.matrix(train)
    assert matrix.dtype == np.float32
    assert matrix.shape == (50, 6)  # four numbers, two protocols
    assert columns.features.tolist() == [0, 1, 2, 3, 4, 4]
    np.testing.assert_allclose(matrix[:, :4].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(matrix[:, :4].std(0), [1, 1, 1, 0], atol=1e-5)  # a constant is 0, not NaN
    assert set(columns.matrix(test)[:, 4:].sum(1).tolist()) == {0.0, 1.0}  # icmp was never seen
    again = Columns.from_dict(columns.as_dict())
    np.testing.assert_array_equal(again.matrix(test), columns.matrix(test))
    raw = Columns.fit(train, standardise=False).matrix(train)[:, 2]
    np.testing.assert_array_equal(raw, train.numbers["rate"].astype(np.float32))
    with pytest.raises(ValueError, match="the column 'duration' of training is missing"):
        columns.matrix(read_tables(write_csv(tmp_path / "x.csv", [[1, "a"]], ["x", "category"]), "category"))
    assert HEADER[2] == columns.names[1]
