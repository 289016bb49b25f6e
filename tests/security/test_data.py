"""Tables, arrays, stores, data sets, pictures and archives of strangers are data: nothing in them runs or leads out."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import EpsImagePlugin, Image

from datamodules.cir_files import read_triplets
from datamodules.image_files import FolderFiles, read_pictures
from datamodules.readers import inside, read_json, read_records
from datamodules.recording_files import read_mat, read_recordings
from datamodules.table_files import read_graph, read_tables
from hardneg.cli import main
from hardneg.encoders import IRResNet, load_composed, load_images, load_signals
from hardneg.encoders.tabular import TabularEncoder, load_tabular
from hardneg.mining.inputs import load_array
from miners.index import FaissIndex
from miners.offline import MinedNegatives
from miners.static_negatives import read_lists
from miners.store import Store
from tests.faces import write_rec
from tests.security.payloads import Pickled, pickled_type, sign

door = pytest.mark.door
ROWS = {"_id": ["a", "b"], "text": ["one", "two"]}


def save_dataset(folder: Path, schema: pa.Schema | None = None, **state: Any) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    table = pa.table(ROWS, schema=schema or pa.schema([(name, pa.string()) for name in ROWS]))
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    told = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(told | state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def objects(file: Path, mark: Path) -> Path:
    """An array of Python objects, which numpy keeps as a pickle."""
    array = np.array([[Pickled(mark)]], dtype=object)
    if file.suffix == ".npz":
        np.savez(file, **dict.fromkeys(("acc", "labels", "train", "feat_data", "offset", "vectors"), array))
    else:
        np.save(file, array, allow_pickle=True)
    return file


# ---- tables and data sets --------------------------------------------------------------------------------------------


@door("table", "data set")
def test_a_type_of_a_column_is_not_unpickled(tmp_path: Path, mark: Path) -> None:
    schema = pa.schema([pa.field(name, pa.string(), metadata=pickled_type(mark)) for name in ROWS])
    pq.write_table(pa.table(ROWS, schema=schema), tmp_path / "table.parquet")
    for place in (tmp_path / "table.parquet", save_dataset(tmp_path / "saved", schema)):
        assert [fields["text"] for _, fields in read_records(place)] == ROWS["text"]
    table = pa.table({"x": [1.0, 2.0], "label": ["a", "b"]}).replace_schema_metadata(schema.metadata)
    pq.write_table(table.append_column(schema.field("text"), [ROWS["text"]]), tmp_path / "rows.parquet")
    assert len(read_tables(str(tmp_path / "rows.parquet"), "label")) == 2
    with pytest.raises(ValueError, match=r"table\.parquet"):
        MinedNegatives.load(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="must have query_id and doc_id"):
        read_lists(tmp_path / "table.parquet", (), ())


@door("data set")
def test_a_saved_data_set_makes_nothing_that_it_names(tmp_path: Path, mark: Path) -> None:
    """`datasets` would look up the format, the classes of features and their types by name."""
    folder = save_dataset(
        tmp_path / "saved", _format_type="tests.security.payloads", _format_kwargs={"mark": str(mark)}
    )
    features = {"text": {"_type": "Marking", "mark": str(mark)}, "_id": {"_type": "Value", "dtype": "show_versions"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    assert [fields["_id"] for _, fields in read_records(folder)] == ROWS["_id"]
    assert "datasets" not in vars(sys.modules["datamodules.readers"])


@door("data set")
@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "deeper/data.arrow"])
def test_a_saved_data_set_names_no_file_outside(name: str, tmp_path: Path) -> None:
    save_dataset(tmp_path / "saved", _data_files=[{"filename": name}])
    with pytest.raises(ValueError, match=r"state\.json: the file .* must be in the folder itself"):
        list(read_records(tmp_path / "saved"))


def test_a_saved_data_set_of_another_form_is_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(ValueError, match="old `datasets` with a choice of rows"):
        list(read_records(folder))
    (folder / "state.json").write_text("[]")
    with pytest.raises(ValueError, match="lists no files of data"):
        list(read_records(folder))


def test_offsets_that_lead_out_of_an_arrow_file_are_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved")
    (file,) = folder.glob("*.arrow")
    data = bytearray(file.read_bytes())
    at = data.index(np.array([0, 3, 6], dtype="<i4").tobytes())  # where the texts begin and end
    data[at + 8 : at + 12] = np.array([1 << 30], dtype="<i4").tobytes()
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"\.arrow: is no Arrow file that can be read"):
        list(read_records(folder))


@door("data set", "table")
@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '{"_id": ' + "9" * 5000 + "}"])
def test_json_of_any_depth_is_refused_with_its_line(line: str, tmp_path: Path, mark: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: is not JSON"):
        list(read_records(tmp_path / "corpus.jsonl"))
    (tmp_path / "all.json").write_text(line)
    with pytest.raises(ValueError, match=r"all\.json.* is not JSON"):
        read_triplets(tmp_path / "all.json")


def test_a_line_or_a_file_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few packed kilobytes may be gigabytes of zeros."""
    monkeypatch.setattr("datamodules.readers.MOST_BYTES", 1000)
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a"}\n' + " " * 2000 + "\n")
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 2: is longer than 1,000 bytes"):
        list(read_records(tmp_path / "corpus.jsonl"))
    (tmp_path / "all.json").write_text("[" + " " * 2000 + "]")
    with pytest.raises(ValueError, match=r"all\.json: has 2,002 bytes, and 1,000 are the most"):
        read_json(tmp_path / "all.json")


@door("data set")
@pytest.mark.parametrize("kind", ["parent", "absolute", "windows"])
def test_a_list_of_recordings_names_no_file_outside(kind: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("x,y\n1,2\n")
    name = {"parent": "../secret.csv", "absolute": str(tmp_path / "secret.csv"), "windows": "..\\secret.csv"}[kind]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "recordings.csv").write_text(f"file,label,subject\n{name},walk,ann\n")
    with pytest.raises(ValueError, match=r"recordings\.csv, line 2: the path .* leads out of .*set"):
        read_recordings(tmp_path / "set")


def test_names_inside() -> None:
    for name in ("a.csv", "a/b.csv", "12:30.csv", "..a/b..csv"):
        assert inside(name, "set") == name
    for name in ("", "."):
        inside(name, "set")
    for name in ("../a", "a/../../b", "/a", "C:/a", "c:a", "\\\\host\\share", "a\\..\\..\\b", "a\0b"):
        with pytest.raises(ValueError, match="leads out of it"):
            inside(name, "set")


def test_words_of_a_file_do_not_steer_the_terminal(tmp_path: Path, sample_folder: Path, capsys) -> None:
    with (sample_folder / "qrels" / "train.tsv").open("a") as out:
        out.write("\x1b[2J\u202enobody\td0\t1\n")
    options = ["--encoder", "tests.security.payloads.Harmless", "--no-cache", "--out", str(tmp_path / "out.parquet")]
    assert main(["mine", str(sample_folder), *options]) == 1
    assert r"unknown query id '\x1b[2J\u202enobody'" in capsys.readouterr().err


# ---- arrays, stores, weights -----------------------------------------------------------------------------------------


@door("array")
def test_objects_in_an_array_are_not_unpickled(tmp_path: Path, mark: Path, sample_folder: Path, capsys) -> None:
    array, packed = objects(tmp_path / "x.npy", mark), objects(tmp_path / "x.npz", mark)
    readers: tuple[tuple[Callable[[Any], Any], Path], ...] = (
        (Store, array),
        (load_array, array),
        (read_recordings, packed),
        (read_graph, packed),
    )
    for read, file in readers:
        with pytest.raises(ValueError, match=r"(?i)allow_pickle|object|numbers"):
            read(file)
    for options in (
        ["--queries", str(array)],
        ["--corpus", str(array)],
        ["--corpus", str(array), "--labels", str(array)],
    ):
        assert main(["mine", *options, "--out", str(tmp_path / "out.parquet")]) == 1
    (tmp_path / "captions.csv").write_text("file,caption\na.png,a\n")
    made = ["data", "make-triplets", "--captions", str(tmp_path / "captions.csv"), "--out", str(tmp_path / "out.jsonl")]
    assert main([*made, "--features", str(array)]) == 1


@door("array")
def test_objects_of_matlab_are_not_made(tmp_path: Path, mark: Path) -> None:
    from scipy.io import savemat

    cells = np.array([[pickle.dumps(Pickled(mark)), np.ones(2)]], dtype=object)
    savemat(tmp_path / "clip.mat", {"x": cells})
    with pytest.raises(ValueError, match="wanted one numeric array"):
        read_mat(tmp_path / "clip.mat")


@door("store")
@pytest.mark.parametrize("part", ["vectors", "ids"])
def test_a_store_is_not_unpickled(part: str, tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "store"
    Store(torch.eye(3), ids=torch.tensor([2, 4, 6]), names=["a", "b", "c"]).save(folder)
    (file,) = folder.glob(f"{part}*.npy")
    objects(file, mark)
    sign(folder / "store.json")
    with pytest.raises((ValueError, OSError)):
        Store.load(folder)
    captions = tmp_path / "captions.csv"
    captions.write_text("file,caption\na,a\n")
    made = ["data", "make-triplets", "--captions", str(captions), "--out", str(tmp_path / "out.jsonl")]
    assert main([*made, "--features", str(folder)]) == 1


@door("store")
@pytest.mark.parametrize("part", ["vectors", "ids"])
def test_a_store_leads_to_no_file_outside(part: str, tmp_path: Path, mark: Path) -> None:
    np.save(tmp_path / "secret.npy", np.arange(3) if part == "ids" else np.ones((3, 3), np.float32))
    folder = tmp_path / "store"
    Store(torch.eye(3), ids=torch.tensor([2, 4, 6])).save(folder)
    before = (folder / "store.json").read_text()
    for outside in ("../secret.npy", str(tmp_path / "secret.npy")):
        (folder / "store.json").write_text(before)
        sign(folder / "store.json", **{part: outside})
        with pytest.raises(ValueError, match="not a plain file name"):
            Store.load(folder)


@door("index")
def test_an_index_is_not_unpickled(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "index"
    FaissIndex(Store(torch.eye(4), ids=torch.tensor([2, 4, 6, 8])), "Flat", device="cpu").save(folder)
    manifests = [*folder.glob("*/store.json"), folder / "index.json"]
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    data = [file for file in whole if file.suffix in (".npy", ".faiss")]
    assert len(data) == 3
    for tampered in data:
        tampered.write_bytes(pickle.dumps(Pickled(mark)))
        for manifest in manifests:
            sign(manifest)
        with pytest.raises((ValueError, OSError)):
            FaissIndex.load(folder)
        for file, content in whole.items():
            file.write_bytes(content)
    assert len(FaissIndex.load(folder).store) == 4


@door("index")
def test_an_index_sets_nothing_but_its_settings(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "index"
    FaissIndex(Store(torch.eye(4)), "Flat", device="cpu").save(folder)
    record = json.loads((folder / "index.json").read_text())
    for changes in ({"search": "os.system"}, {"__class__": "x"}, {"metric": {"a": 1}, **record["settings"]}):
        (folder / "index.json").write_text(json.dumps(record | {"settings": record["settings"] | changes}))
        sign(folder / "index.json")
        with pytest.raises(ValueError, match="its settings are"):
            FaissIndex.load(folder)


@door("index")
def test_an_index_opens_no_file_outside(tmp_path: Path, mark: Path) -> None:
    """FAISS keeps lists on disk under any path, and would open that file for writing."""
    index = FaissIndex(Store(torch.randn(100, 4)), "IVF2,Flat", device="cpu")
    ivf = faiss.extract_index_ivf(index.faiss_index)
    lists = faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(tmp_path / "secret.bin"))
    lists.merge_from(ivf.invlists, 0)
    ivf.replace_invlists(lists)
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match=r"index/secret\.bin in mode r:"):
        FaissIndex.load(tmp_path / "index")


@door("index")
@pytest.mark.skipif(not hasattr(faiss, "set_deserialization_vector_byte_limit"), reason="FAISS has no such limit yet")
def test_an_index_asks_for_no_more_memory_than_its_file(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "index"
    FaissIndex(Store(torch.eye(7)), "Flat", device="cpu").save(folder)
    (file,) = folder.glob("*.faiss")
    content = bytearray(file.read_bytes())
    at = content.index(np.array([49], dtype="<u8").tobytes())  # numbers in 7 x 7
    content[at : at + 8] = np.array([1 << 30], dtype="<u8").tobytes()  # four gigabytes
    file.write_bytes(content)
    sign(folder / "index.json")
    with pytest.raises(ValueError, match="byte_limit"):
        FaissIndex.load(folder)


@door("cache")
def test_a_cache_is_not_unpickled(tmp_path: Path, mark: Path, sample_folder: Path) -> None:
    mine = ["mine", str(sample_folder), "--encoder", "tests.security.payloads.Harmless", "--device", "cpu"]
    mine += ["--cache", str(tmp_path / "cache"), "--num-negatives", "2"]
    assert main([*mine, "--out", str(tmp_path / "first.parquet")]) == 0
    arrays = list((tmp_path / "cache").rglob("*.npy"))
    assert arrays
    for file in arrays:
        objects(file, mark)
    main([*mine, "--out", str(tmp_path / "second.parquet")])  # refused, or encoded again


@door("checkpoint")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_not_unpickled(suffix: str, tmp_path: Path, mark: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save({"conv1.weight": Pickled(mark)}, file)
    with pytest.raises(Exception, match=r"(?i)weights.only|header|safetensor"):
        IRResNet(18, size=16, width=4, weights=str(file))


# ---- encoders of ours ------------------------------------------------------------------------------------------------


@door("model")
@pytest.mark.parametrize("load", [load_images, load_signals, load_composed, load_tabular])
def test_a_folder_of_ours_names_no_class_of_others(load: Callable[[str], Any], tmp_path: Path, mark: Path) -> None:
    evil = {"class": "tests.security.payloads.Marking", "arguments": {"mark": str(mark)}}
    torch.save({"weight": Pickled(mark)}, tmp_path / "model.safetensors")
    (tmp_path / "encoder.json").write_text(json.dumps({"dim": 2, "head": "none", "hidden": None, "backbone": evil}))
    combined = {"parts": {"images": "tests.security.payloads.Marking"}, "options": {}, "combiner": evil}
    (tmp_path / "composed.json").write_text(json.dumps(combined))
    python = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]"
    (tmp_path / "encoder.yaml").write_text(f"columns: {python}\narguments: {python}\n")
    with pytest.raises(Exception, match=r"is not known|known are|none of|constructor"):
        load(str(tmp_path))


@pytest.mark.parametrize("load", [load_images, load_signals, load_composed, load_tabular])
@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"backbone": 3, "backbones": [1], "parts": 1, "arguments": 2}']
)
def test_settings_of_another_form_are_named(load: Callable[[str], Any], content: str, tmp_path: Path) -> None:
    for name in ("model.safetensors", "encoder.json", "encoder.yaml", "composed.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"(encoder\.json|encoder\.yaml|composed\.json) is not as save_pretrained"):
        load(str(tmp_path))


def test_a_part_that_is_missing_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("downloaded").mkdir()
    Path("downloaded/composed.json").write_text('{"parts": {"images": "CLIPEncoder"}}')
    with pytest.raises(FileNotFoundError, match=r"downloaded/images does not exist; composed\.json names it"):
        load_composed("downloaded")


@door("model")
def test_weights_of_ours_that_are_no_weights_are_named(tmp_path: Path, mark: Path) -> None:
    TabularEncoder(3, 2).save_pretrained(tmp_path)
    torch.save({"weight": Pickled(mark)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="SafetensorError"):
        load_tabular(str(tmp_path))


# ---- pictures and archives -------------------------------------------------------------------------------------------


@door("picture")
def test_a_picture_starts_no_program(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program; Pillow would give it to Ghostscript, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: mark.touch())
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    (tmp_path / "set" / "ann").mkdir(parents=True)
    os.rename(tmp_path / "x.eps", tmp_path / "set" / "ann" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png': is no picture that can be read"):
        read_pictures(tmp_path / "set")[0]


@door("picture")
def test_pictures_that_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ann").mkdir()
    Image.new("1", (10_000, 9_500)).save(tmp_path / "ann" / "1.png")
    pictures = read_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"1\.png': is too large"):
        pictures[0]
    monkeypatch.setattr("datamodules.image_files.MOST_BYTES", 100)
    with pytest.raises(ValueError, match="must be a file of at most 100 bytes"):
        pictures[0]


@door("picture")
def test_a_folder_of_pictures_does_not_lead_out_and_ends(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "set" / "ann").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "set" / "ann" / "1.png")
    for link in ("one", "two", "three"):
        (tmp_path / "set" / link).symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "ann" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "set" / "ann" / "2.png").symlink_to("/dev/zero")
    files = FolderFiles(tmp_path / "set")
    assert files.names() == ["ann/1.png", "ann/2.png"]
    with pytest.raises(ValueError, match="must be a file"):
        files.read("ann/2.png")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(ValueError, match="leads out of it"):
            files.read(name)


@pytest.mark.parametrize("key", [10**15, -1])
def test_an_index_of_records_asks_for_no_more_than_its_file_has(key: int, tmp_path: Path) -> None:
    path = write_rec(tmp_path)
    index = path.with_suffix(".idx")
    index.write_text(f"{key}\t0\n{index.read_text()}")
    with pytest.raises(ValueError, match=r"\.idx: record .* is out of range"):
        read_pictures(path)


@door("archive")
@pytest.mark.parametrize("name", ["../{name}", "{path}", "a/../../{name}", "..\\{name}", "link"])
def test_an_archive_writes_and_links_nothing(name: str, tmp_path: Path, mark: Path) -> None:
    member = zipfile.ZipInfo(name.format(name=mark.name, path=mark))
    if name == "link":
        member.external_attr = 0o120777 << 16
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "set.zip", "w") as archive:
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(ValueError, match=r"leads out of it|is a link"):
        read_pictures(tmp_path / "in" / "set.zip")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "set.zip"]
