"""Data whose answer is known: who is a false negative, and who is a hard one, because we put them there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hardneg.encoders import Encoder

TOPICS, RELEVANT, ASKED = 30, 4, 4
FAMILIES, MEMBERS = 16, 8


def false_negatives(folder: Path) -> Path:
    """Each topic has four right documents, of which training is told of two, and dev of all.

    ``false.parquet`` is a table of negatives as a careless miner would write it: the other two.
    """
    documents = {f"d{t}-{n}": f"t{t} answer{t} note{t}x{n}" for t in range(TOPICS) for n in range(RELEVANT)}
    queries = {f"q{t}-{n}": f"t{t} ask{t} word{n}" for t in range(TOPICS) for n in range(ASKED + 1)}
    train = [(f"q{t}-{n}", f"d{t}-{n % 2}") for t in range(TOPICS) for n in range(ASKED)]
    dev = [(f"q{t}-{ASKED}", f"d{t}-{n}") for t in range(TOPICS) for n in range(RELEVANT)]
    _write(folder, documents, queries, train, dev)
    wrong = [(query, f"{document.split('-')[0]}-{n}") for query, document in train for n in (2, 3)]
    columns = {"query_id": [query for query, _ in wrong], "doc_id": [document for _, document in wrong]}
    pq.write_table(pa.table(columns), folder / "false.parquet")
    return folder


def hard_negatives(folder: Path) -> Path:
    """Families of eight that share three of four words: who meets no sibling in a batch learns families alone."""
    members = [(f, m) for f in range(FAMILIES) for m in range(MEMBERS)]
    documents = {f"d{f}-{m}": f"fam{f} fam{f} fam{f} says{f}x{m}" for f, m in members}
    queries = {f"{s}{f}-{m}": f"fam{f} fam{f} {s} wants{f}x{m}" for f, m in members for s in ("train", "dev")}
    judged = {s: [(f"{s}{f}-{m}", f"d{f}-{m}") for f, m in members] for s in ("train", "dev")}
    _write(folder, documents, queries, judged["train"], judged["dev"])
    return folder


def _write(
    folder: Path,
    documents: dict[str, str],
    queries: dict[str, str],
    train: list[tuple[str, str]],
    dev: list[tuple[str, str]],
) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split, pairs in (("train", train), ("dev", dev)):
        lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in pairs)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


class Words(Encoder):
    """The mean of hashed word vectors.

    Args:
        seed: of the weights.
        dim: of the vectors.
    """

    def __init__(self, seed: int = 0, dim: int = 16) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(4096, dim, mode="mean")
        weights = torch.randn(4096, dim, generator=torch.Generator().manual_seed(seed))
        self.words.weight.data.copy_(weights)

    @property
    def dim(self) -> int:
        return self.words.embedding_dim

    def forward(self, inputs: Sequence[str], kind: str) -> Tensor:
        if not inputs:
            return self.words.weight.new_zeros(0, self.dim)
        numbers = [[_hashed(word) % 4096 for word in text.split()] for text in inputs]
        starts = torch.tensor([0, *map(len, numbers)]).cumsum(0)[:-1]
        return self.words(torch.tensor([number for text in numbers for number in text]), starts)

    @torch.no_grad()
    def embed(self, inputs: Sequence[Any], kind: str, batch_size: int = 64, progress: str | None = None) -> Tensor:
        return self(list(inputs), kind)

    def fingerprint(self, kind: str) -> str:
        return f"{self.words.weight.double().sum()} {self.words.weight.double().std()}"

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


class TopicGuide(Words):
    """A judge that sees the topic and nothing else: never wrong."""

    def __init__(self) -> None:
        super().__init__(dim=TOPICS)

    def forward(self, inputs: Sequence[str], kind: str) -> Tensor:
        topics = [int(text.split()[0].removeprefix("t")) for text in inputs]
        return torch.nn.functional.one_hot(torch.tensor(topics, dtype=torch.long), TOPICS).float()


class CoinGuide(Words):
    """A judge that throws coins."""

    def __init__(self) -> None:
        super().__init__(seed=1)

    def forward(self, inputs: Sequence[str], kind: str) -> Tensor:
        draws = [torch.Generator().manual_seed(_hashed(text)) for text in inputs]
        return torch.stack([torch.randn(self.dim, generator=draw) for draw in draws])


def _hashed(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=6).digest(), "little")
