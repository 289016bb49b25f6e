"""Tiny sets of "faces" in the layouts of real ones: each identity is a pattern, each picture a noisy one."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def face(identity: int, number: int, size: int = 16) -> bytes:
    """A PNG of a grey pattern."""
    pattern = np.random.default_rng(identity).integers(0, 256, (4, 4)).repeat(size // 4, 0).repeat(size // 4, 1)
    noise = np.random.default_rng((identity + 1) * 1000 + number).normal(0, 20, (size, size))
    file = io.BytesIO()
    Image.fromarray(np.clip(pattern + noise, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_table(folder: Path, identities: int = 10, each: int = 4, train: int = 6, val: int = 2) -> Path:
    """images.zip, metadata.csv (split: the first ``train`` identities, then ``val``, then test) and pairs_test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,identity,split"]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for identity in range(identities):
            split = "train" if identity < train else "val" if identity < train + val else "test"
            for number in range(each):
                name = f"s{identity:02d}/{number:02d}.png"
                archive.writestr(name, face(identity, number))
                lines.append(f"{name},s{identity:02d},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    tested = range(train + val, identities)
    pairs = [
        (f"s{a:02d}/{i:02d}.png", f"s{b:02d}/{j:02d}.png", int(a == b))
        for a in tested
        for b in tested
        for i in range(each)
        for j in range(each)
        if (a, i) < (b, j)
    ]
    rows = [f"{a},{b},{same},any,{row % 10}" for row, (a, b, same) in enumerate(pairs)]
    (folder / "pairs_test.csv").write_text("\n".join(["file_a,file_b,same,kind,fold", *rows]) + "\n")
    return folder


def write_lfw(folder: Path, identities: int = 4) -> Path:
    """lfw/Name/Name_0001.png and pairs.txt of two folds."""
    for identity in range(identities):
        name = f"P{chr(65 + identity)}"
        (folder / "lfw" / name).mkdir(parents=True)
        for number in (1, 2):
            (folder / "lfw" / name / f"{name}_{number:04d}.png").write_bytes(face(50 + identity, number))
    lines = ["2\t2", "PA\t1\t2", "PB\t1\t2", "PA\t1\tPB\t1", "PA\t2\tPC\t1"]
    lines += ["PC\t1\t2", "PD\t1\t2", "PC\t1\tPD\t2", "PB\t2\tPD\t1"]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_rec(folder: Path, identities: int = 4, each: int = 3) -> Path:
    """train.rec and train.idx as insightface packs them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = identities * each

    def header(*labels: float) -> bytes:
        if len(labels) == 1:
            return struct.pack("<IfQQ", 0, labels[0], 0, 0)
        return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, 0, 0, *labels)

    records = {0: header(pictures + 1, pictures + 1 + identities)}
    for key in range(1, pictures + 1):
        identity = (key - 1) // each
        records[key] = header(identity) + face(identity, key)
    for identity in range(identities):
        records[pictures + 1 + identity] = header(1 + identity * each, 1 + (identity + 1) * each)
    lines, data = [], b""
    for key, record in records.items():
        lines.append(f"{key}\t{len(data)}")
        data += struct.pack("<II", 0xCED7230A, len(record)) + record + b"\0" * (-len(record) % 4)
    (folder / "train.rec").write_bytes(data)
    (folder / "train.idx").write_text("\n".join(lines) + "\n")
    return folder / "train.rec"


def write_bin(path: Path, pairs: int = 10) -> Path:
    """An evaluation set as insightface packs it."""
    pictures = []
    for pair in range(pairs):
        pictures += [face(60 + pair, 0), face(60 + pair + pair % 2, 1)]
    path.write_bytes(pickle.dumps((pictures, [pair % 2 == 0 for pair in range(pairs)]), 4))
    return path
