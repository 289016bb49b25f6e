from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import TabularData
from miners import AugmentedNegatives, Ragged, Resample, StaticNegatives
from tests.tables import flows, write_csv, write_flows, write_graph


def one_class(folder: Path, **options: Any) -> TabularData:
    given: dict[str, Any] = {
        "test": str(folder / "test.csv.gz"),
        "label": "category",
        "benign": "normal",
        "drop": ["note"],
        "batch_size": 8,
    }
    return TabularData(**({"train": str(folder / "train_20percent.csv.gz")} | given | options))


def ready(data: TabularData) -> TabularData:
    data.setup("fit")
    return data


def test_one_class_is_trained_on_and_standardised_by(tmp_path: Path) -> None:
    data = ready(one_class(write_flows(tmp_path)))
    assert data.classes == ("normal", "dos", "probe")
    rows = data.training_rows
    assert set(data.labels[rows].tolist()) == {0}
    assert len(rows) == 32  # of 40, a fifth is held out
    numbers = data.features[rows][:, :4]
    torch.testing.assert_close(numbers.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.std(0, correction=0), torch.tensor([1.0, 1, 1, 0]), atol=1e-5, rtol=0)
    assert torch.isfinite(data.features).all()
    held = data.ids("val")
    assert not bool(torch.isin(held, data.ids("train")).any())
    assert set(data.labels[held].tolist()) == {0, 1}
    ids, texts = data.queries("test")
    assert set(data.labels[ids].tolist()) == {1, 2}
    assert texts[0].startswith("dos · test.csv.gz row ")
    assert all(data.qrels("test").values())


def test_corrupted_copies_travel_along(tmp_path: Path) -> None:
    lists = Ragged.from_lists([[row] for row in range(32)])
    sources = [StaticNegatives(lists), AugmentedNegatives(Resample(0.5), per_anchor=2)]
    data = ready(one_class(write_flows(tmp_path), sources=sources))
    # a list of row numbers that are no training rows' own: attacks of the training file
    batch = next(iter(data.train_dataloader()))
    drawn = batch.items["drawn"]
    assert drawn.rows is not None
    assert drawn.ids is not None
    assert (drawn.ids == -1).sum() == 16
    assert drawn.rows[drawn.ids == -1].tolist() == list(range(8)) * 2
    copies = batch.inputs["drawn"][drawn.ids == -1]
    assert bool((copies != batch.inputs["row"].repeat(2, 1)).any(1).all())
    assert torch.equal(batch.inputs["row"], data.features[batch.items["row"].ids])


def test_copies_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = write_flows(tmp_path)
    found = []
    for size in (8, 5):
        data = ready(one_class(folder, sources=[AugmentedNegatives()], batch_size=size))
        by_row: dict[int, list[float]] = {}
        for batch in data.train_dataloader():
            by_row |= dict(zip(batch.rows.tolist(), batch.inputs["drawn"].tolist(), strict=True))
        found.append(by_row)
    assert found[0] == found[1]


def test_classes_without_a_benign_one(tmp_path: Path) -> None:
    data = ready(TabularData(str(write_graph(tmp_path / "graph.npz")), standardise=False, all_rows=True))
    assert data.classes == ("0", "1", "2")
    assert len(data.training_rows) == 60
    assert {name: len(data.ids(name)) for name in ("train", "val", "test")} == {"train": 30, "val": 10, "test": 20}
    assert len(data.labelled()) == 30
    assert len(data.queries("test")[0]) == 20
    assert data.everything("row")[1].shape == (60, 12)
    masked = ready(TabularData(str(tmp_path / "graph.npz"), mask_labels=True, batch_size=4))
    batch = next(iter(masked.train_dataloader()))
    assert torch.equal(batch.items["row"].labels, masked.labels[batch.items["row"].ids])


def test_rows_of_a_split_are_never_trained_on_as_others(tmp_path: Path) -> None:
    names = ["x", "split", "label"]
    splits = ["train", "train", "test", ""]
    rows: list[list[object]] = [[row, splits[row % 4], "ab"[row // 4 % 2]] for row in range(32)]
    data = ready(TabularData(str(write_csv(tmp_path / "all.csv", rows, names)), val_share=0.5, batch_size=2))
    number = [int(name.split()[-1]) - 1 for name in data.names("row")]
    trained = {number[row] for row in data.training_rows.tolist()}
    assert all(splits[row % 4] == "train" for row in trained)
    assert len(data.features) == 24  # what is of no split is left out
    with pytest.raises(ValueError, match=r"files of 'train' say of which split their rows are \(column 'split'\)"):
        ready(TabularData(str(tmp_path / "all.csv"), test=str(tmp_path / "all.csv")))
    rows[5][1] = "training"
    with pytest.raises(ValueError, match="the column 'split' says 'training'; wanted train, val, test, or nothing"):
        ready(TabularData(str(write_csv(tmp_path / "typo.csv", rows, names))))


def test_files_of_one_name_in_two_splits_are_told_apart(tmp_path: Path) -> None:
    for seed, name in enumerate(("u", "v")):
        (tmp_path / name).mkdir()
        write_csv(tmp_path / name / "f.csv", flows(20, seed, ("dos",)))
    data = ready(one_class(tmp_path, train=str(tmp_path / "u" / "f.csv"), test=str(tmp_path / "v" / "f.csv")))
    assert len(set(data.names("row"))) == 40
    assert data.names("row")[int(data.ids("test")[-1])] == f"{tmp_path}/v/f.csv row 20"


def test_few_labels_are_nested_and_balanced(tmp_path: Path) -> None:
    data = ready(one_class(write_flows(tmp_path)))
    few, more = data.few_labels(3, 0), data.few_labels(5, 0)
    assert torch.bincount(data.labels[few]).tolist() == [3, 3]
    assert bool(torch.isin(few, more).all())
    assert len(data.few_labels(1000, 0)) == len(data.ids("train"))
    assert not torch.equal(data.few_labels(3, 1), few)


def test_messages(tmp_path: Path) -> None:
    folder = write_flows(tmp_path)
    with pytest.raises(
        ValueError, match=r"split 'train' has the label 'benign' in the column 'category'; there are dos"
    ):
        ready(one_class(folder, benign="benign"))
    normal = [row for row in flows(20, 3, ("dos",)) if row[-1] == "normal"]
    with pytest.raises(ValueError, match=r"all rows of the split 'test' are 'normal'. Nothing can be told apart"):
        ready(one_class(folder, test=str(write_csv(tmp_path / "quiet.csv", normal))))
    attacks = [row for row in flows(20, 3, ("dos",)) if row[-1] != "normal"]
    with pytest.raises(ValueError, match="no row of the split 'test' has the label 'normal'"):
        ready(one_class(folder, test=str(write_csv(tmp_path / "loud.csv", attacks))))
    with pytest.raises(ValueError, match="the split 'test' has rows of the class 'probe', which no training row has"):
        ready(one_class(folder, benign=None))
    with pytest.raises(ValueError, match="has no column 'label'; it has duration"):
        ready(one_class(folder, label="label"))
    with pytest.raises(ValueError, match="has no split 'else'"):
        ready(one_class(folder)).ids("else")
    with pytest.raises(ValueError, match="32 training rows are fewer than a batch"):
        ready(one_class(folder, batch_size=64, drop_last=True))
    with pytest.raises(ValueError, match=r"TabularData\(val_share=1\): a share"):
        one_class(folder, val_share=1)
    with pytest.raises(ValueError, match="wants 'refuse' or 'drop'"):
        one_class(folder, missing="mean")
    with pytest.raises(ValueError, match="would train on rows that are not benign"):
        one_class(folder, all_rows=True)
