"""Windows as training rows: splits without leaks, masks, labels, and both modalities of one instant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import HARData
from datamodules.labelled import nested_draw
from miners import NGAME, NoDuplicates, Ragged, StaticNegatives
from tests.recordings import ACTIONS, write_packed, write_sensor_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_packed(tmp_path / "set")


def ready(folder: Path, **options: object) -> HARData:
    data = HARData(str(folder), **({"steps": {"inertial": 20, "skeleton": 16}, "batch_size": 4} | options))  # type: ignore[arg-type]
    data.setup("fit")
    return data


def test_a_batch_holds_both_modalities_of_the_same_windows(folder: Path) -> None:
    data = ready(folder)
    batch = next(iter(data.train_dataloader()))
    assert list(batch.inputs) == ["inertial", "skeleton"]
    assert batch.inputs["inertial"].shape == (4, 20, 6)
    assert batch.inputs["skeleton"].shape == (4, 16, 5, 3)
    ids = batch.items["inertial"].ids
    assert ids is not None
    assert torch.equal(ids, batch.items["skeleton"].ids)
    assert torch.equal(batch.inputs["skeleton"], data.cut(ids, "skeleton"))
    assert batch.known.to_lists() == [[int(i)] for i in ids]
    assert batch.items["inertial"].labels is None  # nobody asked for the oracle


def test_splits_share_no_recording_and_no_subject(folder: Path) -> None:
    data = ready(folder, window=20, hop=5, steps=20)
    subjects = {}
    for name in ("train", "val", "test"):
        recordings = data.windows.recording[data.ids(name)].unique()
        subjects[name] = set(data.recordings.fields["subject"][recordings.numpy()].tolist())
    assert subjects == {"train": {"1", "2"}, "val": {"3"}, "test": {"4"}}
    assert len(data.ids("train")) > len(data.windows.recording[data.ids("train")].unique())  # cut into several


def test_overlapping_splits_are_refused(folder: Path) -> None:
    both = {"train": {"subject": [1, 2]}, "test": {"subject": [2, 3]}}
    with pytest.raises(ValueError, match=r"recording 'recording 2' is in the splits 'test' and 'train'"):
        ready(folder, splits=both)
    with pytest.raises(ValueError, match="no recording has subject 9"):
        ready(folder, splits={"train": {"subject": [9]}})
    by_trial = ready(folder, splits={"train": {"trial": [1], "subject": [1, 2]}, "test": {"trial": [2]}})
    assert by_trial.val_split is None
    assert len(by_trial.ids("train")) == 6


def test_windows_of_one_recording_do_not_leak_when_they_come_ready(tmp_path: Path) -> None:
    windows = np.random.default_rng(0).normal(size=(4, 8, 2)).astype(np.float32)
    np.savez(tmp_path / "w.npz", acc=windows, label=[0, 1, 0, 1], part=["a", "a", "b", "b"], recording=[0, 1, 2, 1])
    with pytest.raises(ValueError, match="is in the splits"):
        ready(tmp_path / "w.npz", steps=8, splits={"train": {"part": ["a"]}, "test": {"part": ["b"]}})


@pytest.mark.parametrize(("mask", "groups"), [("window", None), ("recording", 12), ("subject", 2)])
def test_masks(folder: Path, mask: str, groups: int | None) -> None:
    data = ready(folder, mask=mask, window=20, hop=10, steps=20, batch_size=256)
    content = next(iter(data.train_dataloader())).items["skeleton"].content
    assert (None if content is None else len(content.unique())) == groups
    if mask == "subject":
        return
    table = data.table  # batches without windows that exclude each other
    assert table.document_content is not None
    assert len(table.document_content) == len(data.windows)


def test_batches_that_keep_windows_of_a_recording_apart(folder: Path) -> None:
    data = ready(folder, window=20, hop=10, steps=20, batch_miner=NoDuplicates())
    for batch in data.train_dataloader():
        content = batch.items["inertial"].content
        assert content is not None
        assert len(content.unique()) == len(content)


def test_the_oracle_mask_brings_labels(folder: Path) -> None:
    batch = next(iter(ready(folder, mask_labels=True).train_dataloader()))
    labels, ids = batch.items["inertial"].labels, batch.items["inertial"].ids
    assert labels is not None
    assert ids is not None
    assert torch.equal(labels, ready(folder).labels[ids])


def test_sources_draw_windows_of_every_modality(folder: Path) -> None:
    lists = Ragged.from_lists([[(row + 3) % 12] for row in range(12)])
    data = ready(folder, sources=[StaticNegatives(lists)])
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs["drawn inertial"].shape == (4, 20, 6)
    assert batch.inputs["drawn skeleton"].shape == (4, 16, 5, 3)
    assert batch.items["drawn skeleton"].rows is not None


@pytest.mark.parametrize("seed", range(3))
def test_label_shares_are_nested_stratified_and_leave_no_class_out(seed: int) -> None:
    labels = torch.tensor([0] * 40 + [1] * 10 + [2])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    before = torch.zeros(len(labels), dtype=torch.bool)
    for share in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        drawn = nested_draw(labels, share, seed)
        assert bool((drawn | ~before).all()), "a smaller share is not part of a larger one"
        counts = torch.bincount(labels[drawn], minlength=3).tolist()
        assert counts == [max(1, int(share * number + 1e-9)) for number in (40, 10, 1)]
        before = drawn
    assert not torch.equal(nested_draw(labels, 0.1, seed), nested_draw(labels, 0.1, seed + 1))


def test_labels_are_drawn_by_recording(folder: Path) -> None:
    data = ready(folder, window=20, hop=10, steps=20, label_share=0.5)
    rows = data.labelled()
    recordings = data.windows.recording[rows].unique()
    assert len(recordings) == 6
    assert sorted(data.labels[rows].unique().tolist()) == [0, 1, 2]
    whole = torch.isin(data.windows.recording[data.ids("train")], recordings)
    assert int(whole.sum()) == len(rows)  # all windows of a recording, or none


def test_statistics_are_those_of_the_training_recordings(folder: Path) -> None:
    data = ready(folder)
    rows = data.windows.recording[data.ids("train")].tolist()
    at, offsets = data.recordings.signals["inertial"], data.recordings.offsets["inertial"]
    samples = np.concatenate([at[offsets[row] : offsets[row + 1]] for row in rows])
    mean, scale = data.statistics("inertial")
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale, samples.std(0), rtol=1e-4)
    mean, scale = data.statistics("skeleton")
    assert mean.shape == (3,)
    assert scale.ndim == 0


def test_csv_files_bring_their_split(tmp_path: Path) -> None:
    data = ready(write_sensor_files(tmp_path / "mine"), window=50, steps=None, batch_miner=NGAME(space="inertial"))
    assert data.spaces == ("inertial",)
    assert data.classes == tuple(sorted(ACTIONS))
    assert data.text_of(data.ids("test")[:1], "inertial") == ["wave · dee_wave_0.csv of dee, window 1 of 2"]


def test_recordings_without_a_label_are_trained_on_and_not_evaluated(tmp_path: Path) -> None:
    folder = write_sensor_files(tmp_path / "mine")
    table = folder / "recordings.csv"
    text = table.read_text().replace("ann_wave_0.csv,wave,", "ann_wave_0.csv,,")
    table.write_text(text.replace("dee_wave_0.csv,wave,", "dee_wave_0.csv,,"))
    data = ready(folder, steps=20)
    assert (len(data.ids("train")), len(data.labelled(1.0))) == (12, 11)
    assert (len(data.ids("test")), len(data.queries("test")[0])) == (6, 5)
    assert data.text_of(data.ids("train")[:1], "inertial") == ["unlabelled · ann_wave_0.csv of ann"]


def test_without_a_split_says_how_to_give_one(tmp_path: Path) -> None:
    folder = write_sensor_files(tmp_path / "mine")
    table = (folder / "recordings.csv").read_text().replace("split", "whatever")
    (folder / "recordings.csv").write_text(table)
    with pytest.raises(ValueError, match=r"Set data.init_args.splits.*'subject', 'whatever'"):
        ready(folder, window=50, steps=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "wants a window"),
        ({"hop": 5}, "needs a window"),
        ({"mask": "day"}, "wants 'window', 'recording' or 'subject'"),
        ({"label_share": 0}, "a share"),
        ({"modalities": ["skeleton", "video"]}, "no signal 'video'"),
        ({"splits": {"training": {}}}, "wants train, val, test"),
        ({"batch_size": 13, "drop_last": True}, "12 training windows are fewer than a batch"),
    ],
)
def test_messages(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(folder, **options)
