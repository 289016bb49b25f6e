"""Small tables of flows and graphs, written as real ones come."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np

HEADER = ["duration", "protocol", "bytes", "rate", "constant", "note", "category"]


def flows(rows: int, seed: int, attacks: tuple[str, ...]) -> list[list[object]]:
    """Normal rows, in which bytes follow duration; an attack breaks that, or has another protocol."""
    random = np.random.default_rng(seed)
    out: list[list[object]] = []
    for row in range(rows):
        label = "normal" if row % 2 else attacks[row // 2 % len(attacks)]
        duration = random.normal()
        size = duration + 0.1 * random.normal() if label == "normal" else -duration + 2 * random.normal()
        protocol = "icmp" if label == "probe" else ["tcp", "udp"][row % 3 == 0]
        out.append([duration, protocol, 1000 * size, random.uniform(), 7, f"note {row}", label])
    return out


def write_flows(folder: Path, rows: int = 80) -> Path:
    """train_20percent.csv.gz and test.csv.gz; the test set has a class and a protocol that training lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, attacks) in enumerate({"train_20percent": ("dos",), "test": ("dos", "probe")}.items()):
        write_csv(folder / f"{name}.csv.gz", flows(rows, seed, attacks))
    return folder


def write_csv(file: Path, rows: list[list[object]], header: list[str] = HEADER) -> Path:
    with gzip.open(file, "wt", newline="") if file.suffix == ".gz" else file.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


def write_graph(file: Path, nodes: int = 60, features: int = 12, classes: int = 3) -> Path:
    """A graph's npz with sparse features that tell the class, and splits."""
    from scipy.sparse import csr_matrix

    file.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    labels = np.arange(nodes) % classes
    dense = random.random((nodes, features)) * (random.random((nodes, features)) < 0.4)
    dense[np.arange(nodes), labels] += 1
    sparse = csr_matrix(dense.astype(np.float32))
    order = random.permutation(nodes)
    split = dict(zip(("train", "val", "test"), np.split(order, [nodes // 2, 2 * nodes // 3]), strict=True))
    parts = {name: getattr(sparse, name) for name in ("data", "indices", "indptr")}
    np.savez(
        file,
        labels=labels.astype(np.int16),
        feat_o_shape=np.array(dense.shape),
        **{f"feat_o_{name}": part for name, part in parts.items()},
        **{name: np.sort(rows) for name, rows in split.items()},
    )
    return file
