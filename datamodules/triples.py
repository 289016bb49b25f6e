"""Knowledge graphs: triples of a head, a relation and a tail, and texts of their entities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datamodules.readers import expand, id_field, read_records
from datamodules.texts import Vocabulary

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class KnowledgeGraph:
    """A graph with texts.

    Args:
        entities: names; position = id.
        texts: of each entity, "" where it has none.
        relations: names; position = id.
        triples: (m, 3) int64 of each split: head, relation, tail.
    """

    entities: Vocabulary
    texts: tuple[str, ...]
    relations: Vocabulary
    triples: Mapping[str, Tensor]


def read_graph(folder: str | os.PathLike[str]) -> KnowledgeGraph:
    """Read a folder with entities, relations and the splits "train", "valid" and "test".

    entities.jsonl holds `id`, and `name` and `text`, which are joined; relations.jsonl `id`; <split>.tsv has the header
    `head relation tail`. Each may be .gz.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: an entity or relation of a triple that its file does not list, or one listed twice; file and line
            are named.
    """
    folder = expand(folder)
    entities, relations, texts = Vocabulary(), Vocabulary(), []
    for names, stem in ((entities, "entities"), (relations, "relations")):
        for place, fields in read_records(_file(folder, f"{stem}.jsonl")):
            if not names.add(name := id_field(place, fields, "id")):
                raise ValueError(f"{place}: '{name}' stands among the {stem} twice.")
            if names is entities:
                parts = (str(fields.get(part) or "").strip() for part in ("name", "text"))
                texts.append(": ".join(part for part in parts if part))
    triples = {}
    for split in SPLITS:
        found = []
        for place, fields in read_records(_file(folder, f"{split}.tsv")):
            row = []
            for column, names in (("head", entities), ("relation", relations), ("tail", entities)):
                name = id_field(place, fields, column)
                at = names.position(name)
                if at is None:
                    listed = "relations" if names is relations else "entities"
                    raise ValueError(f"{place}: {column} '{name}' is not among the {listed} of {listed}.jsonl.")
                row.append(at)
            found.append(row)
        triples[split] = torch.tensor(found, dtype=torch.long).view(-1, 3)
    return KnowledgeGraph(entities, tuple(texts), relations, triples)


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name
