"""Every layout gives the same recordings, and every mistake names its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules.recording_files import read_mat, read_recordings
from tests.recordings import ACTIONS, clips, movement, write_mats, write_packed, write_sensor_files


def test_packed(tmp_path: Path) -> None:
    at = read_recordings(write_packed(tmp_path / "set"))
    assert at.modalities == ("inertial", "skeleton")
    assert at.classes == ACTIONS
    assert at.labels.tolist() == [action - 1 for action, _, _ in clips()]
    assert at.fields["subject"].tolist() == [str(subject) for _, subject, _ in clips()]
    inertial, skeleton = movement(1, 1, 1, frames=24)
    np.testing.assert_array_equal(at.signals["inertial"][: len(inertial)], inertial)
    np.testing.assert_array_equal(at.signals["skeleton"][: len(skeleton)], skeleton)


def test_matlab_clips(tmp_path: Path) -> None:
    folder = write_mats(tmp_path / "utd")
    (folder / "Skeleton" / "a3_s2_t1_skeleton.mat").unlink()  # the clip that lacks one is left out
    at = read_recordings(folder)
    assert at.names == ("a1_s1_t1", "a1_s2_t1", "a2_s1_t1", "a2_s2_t1", "a3_s1_t1")
    inertial, skeleton = movement(1, 1, 1)
    np.testing.assert_allclose(at.signals["inertial"][: len(inertial)], inertial, rtol=1e-6)
    np.testing.assert_allclose(at.signals["skeleton"][: len(skeleton)], skeleton, rtol=1e-6)
    assert at.fields["trial"].tolist() == ["1"] * 5


def test_mmact_clips_are_matched_by_scene_and_session(tmp_path: Path) -> None:
    """Files without a header, whose first line is a sample; trials are counted for each sensor by itself."""
    for sub in ("Inertial", "Skeleton"):
        (tmp_path / sub).mkdir()
    signal = np.arange(24.0).reshape(2, 12)
    np.savetxt(tmp_path / "Inertial" / "a10_s2_t1_ses3_sc1.csv", signal, delimiter=",", fmt="%.6f")
    np.save(tmp_path / "Skeleton" / "a10_s2_t4_ses3_sc1.npy", np.arange(17 * 2 * 3.0).reshape(17, 2, 3))
    at = read_recordings(tmp_path)
    assert at.names == ("a10_s2_ses3_sc1",)
    np.testing.assert_array_equal(at.signals["inertial"], signal)
    assert at.signals["skeleton"].shape == (3, 17, 2)
    assert {name: column.tolist() for name, column in at.fields.items()} == {
        "subject": ["2"],
        "session": ["3"],
        "scene": ["1"],
    }


def test_a_table_of_csv_files(tmp_path: Path) -> None:
    at = read_recordings(write_sensor_files(tmp_path / "mine"))
    assert at.modalities == ("inertial",)
    assert at.classes == tuple(sorted(ACTIONS))
    assert at.signals["inertial"].shape[1] == 6  # without the time
    signal, _ = movement(1, 1, 0, frames=40)
    np.testing.assert_allclose(at.signals["inertial"][: len(signal)], signal, rtol=1e-6)
    assert set(at.fields) == {"subject", "split"}


def test_a_table_of_two_modalities_without_labels(tmp_path: Path) -> None:
    for name, rows in (("wrist", 6), ("hip", 4)):
        np.savetxt(tmp_path / f"{name}.csv", np.ones((rows, 3)), delimiter=",")
    table = "file_wrist,file_hip,label,subject\nwrist.csv,hip.csv,,ann\n"
    (tmp_path / "recordings.csv").write_text(table)
    at = read_recordings(tmp_path)
    assert at.modalities == ("wrist", "hip")
    assert [len(at.signals[name]) for name in at.modalities] == [6, 4]
    assert at.labels.tolist() == [-1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_long_tables(tmp_path: Path, suffix: str) -> None:
    import pyarrow as pa
    from pyarrow import csv, parquet

    columns = {
        "recording": ["a", "a", "b"],
        "label": ["sit", "sit", "walk"],
        "subject": ["ann", "ann", "bob"],
        "time": [0.0, 0.1, 0.0],
        "x": [1.0, 2.0, 3.0],
    }
    file = tmp_path / f"long{suffix}"
    (parquet.write_table if suffix == ".parquet" else csv.write_csv)(pa.table(columns), file)
    at = read_recordings(file)
    assert at.names == ("a", "b")
    assert at.classes == ("sit", "walk")
    assert at.offsets["inertial"].tolist() == [0, 2, 3]
    assert at.signals["inertial"].tolist() == [[1], [2], [3]]


def test_ready_windows(tmp_path: Path) -> None:
    file = tmp_path / "windows.npz"
    windows = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float16)
    np.savez(file, acc=windows, label=[1, 0, 1], subject=[4, 4, 5], recording=[9, 9, 7])
    at = read_recordings(file)
    assert at.classes == ("0", "1")
    np.testing.assert_array_equal(at.signals["acc"].reshape(3, 8, 2), windows.astype(np.float32))
    assert at.fields["recording"].tolist() == ["9", "9", "7"]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", acc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="Python objects, which are not read"):
        read_recordings(tmp_path / "bad.npz")


def test_matlab_files_of_other_things_are_refused(tmp_path: Path) -> None:
    from scipy.io import savemat

    file = tmp_path / "a1_s1_t1.mat"
    for content in (
        {"run": "system('ls')"},
        {"cell": np.array([np.ones(3), "text"], dtype=object)},
        {"both": np.ones((2, 2)), "more": np.ones((2, 2))},
        {"structure": {"field": 1.0}},
        {"complex": np.ones((2, 2)) * 1j},
    ):
        savemat(file, content)
        with pytest.raises(ValueError, match=r"a1_s1_t1.mat: (wanted one numeric array|.* is no plain array)"):
            read_mat(file)
    file.write_bytes(b"MATLAB 7.3 MAT-file, but not really")
    with pytest.raises(ValueError, match="is no MATLAB file"):
        read_mat(file)


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = write_sensor_files(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_recordings(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no recordings of a layout"):
        read_recordings(tmp_path / "empty")
    table = folder / "recordings.csv"
    lines = table.read_text().splitlines()

    def broken(change: dict[int, str]) -> Path:
        table.write_text("\n".join(change.get(at, line) for at, line in enumerate(lines)) + "\n")
        return folder

    with pytest.raises(FileNotFoundError, match=r"recordings.csv, line 3: 'gone.csv' is not in"):
        read_recordings(broken({2: "gone.csv,wave,ann,train"}))
    with pytest.raises(ValueError, match="no column 'label'"):
        read_recordings(broken({0: "file,activity,subject,split"}))
    shutil.copy(folder / "ann_wave_0.csv", folder / "text.csv")
    text = (folder / "text.csv").read_text().splitlines()
    (folder / "text.csv").write_text("\n".join([*text[:3], "0.1,left,1,1,1,1,1", *text[3:]]) + "\n")
    with pytest.raises(ValueError, match=r"text.csv: column 'acc_x' holds string, not numbers"):
        read_recordings(broken({1: "text.csv,wave,ann,train"}))
    (folder / "gap.csv").write_text("\n".join([*text[:3], "0.1,,1,1,1,1,1", *text[3:]]) + "\n")
    with pytest.raises(ValueError, match=r"recording 'gap.csv', signal 'inertial': sample 2"):
        read_recordings(broken({1: "gap.csv,wave,ann,train"}))
    (folder / "narrow.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="columns must agree"):
        read_recordings(broken({2: "narrow.csv,wave,ann,train"}))
