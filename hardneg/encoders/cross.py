"""Models that read a query and a document together and give one score: re-rankers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hardneg.encoders.model_files import check_model
from hardneg.encoders.text import CPU_TEXTS_PER_PASS, freeze_layers, keep_layers, resolve


class PairScorer(nn.Module, ABC):
    """Gives (query, document) pairs one score each; higher = more relevant (or likelier selected, see `miners.CET`)."""

    @abstractmethod
    def forward(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """(n,) raw scores of n pairs, with gradient."""

    @torch.no_grad()
    def settled(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """(n,) the same in evaluation mode: without dropout and gradient."""
        training = self.training
        self.eval()
        try:
            return self(queries, documents)
        finally:
            self.train(training)


class CrossEncoder(PairScorer):
    """A transformer that reads "[CLS] query [SEP] document [SEP]", with a fresh head of one score.

    Args:
        model: as in `TextEncoder`: a hub name, a folder, or "packaged:all-MiniLM-L6-v2". The head is fresh unless the
            model is a cross-encoder already.
        max_seq_length: tokens after which a pair is cut, the document first; a step's price grows with it.
        num_layers: keep the first so many transformer layers; null keeps all.
        frozen_layers: token embeddings and the first so many layers stay as they are.
        dropout: of every dropout layer while training, in [0, 1); null keeps the model's own.
        seed: of the fresh head.
        pairs_per_pass: pairs that go through the model together, sorted by length; null = 16 on a CPU, all on a GPU.

    Raises:
        FileNotFoundError: a local path that is no model folder.
        ValueError: a dropout out of range; files of the model that name code.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        max_seq_length: int = 96,
        num_layers: int | None = None,
        frozen_layers: int = 0,
        dropout: float | None = None,
        seed: int = 0,
        pairs_per_pass: int | None = None,
    ) -> None:
        super().__init__()
        from sentence_transformers import CrossEncoder as Model

        if dropout is not None and not 0 <= dropout < 1:
            raise ValueError(f"CrossEncoder(dropout={dropout}): a share, so 0 <= dropout < 1; null keeps the model's.")
        self.model, self.num_layers, self.dropout, self.seed = model, num_layers, dropout, seed
        self.pairs_per_pass = pairs_per_pass
        place = resolve(model)
        check_model(place)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # two models with two seeds have two heads
            self.transformer = Model(
                place, num_labels=1, max_length=max_seq_length, device="cpu", trust_remote_code=False
            )
        self.transformer.train()  # it loads in evaluation mode, and Lightning leaves modes as it finds them
        if dropout is not None:
            for module in self.transformer.modules():
                if isinstance(module, nn.Dropout):
                    module.p = dropout
        if num_layers is not None:
            keep_layers(self.transformer, num_layers)
        if frozen_layers:
            freeze_layers(self.transformer, frozen_layers)

    def forward(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        pairs = list(zip(queries, documents, strict=True))
        if not pairs:
            return torch.zeros(0, device=self._device())
        size = self.pairs_per_pass or (CPU_TEXTS_PER_PASS if self._device().type == "cpu" else len(pairs))
        by_length = sorted(range(len(pairs)), key=lambda at: sum(map(len, pairs[at])))
        parts = [
            self._score([pairs[at] for at in by_length[start : start + size]]) for start in range(0, len(pairs), size)
        ]
        places = torch.tensor(by_length, device=parts[0].device)
        return torch.cat(parts)[places.argsort()]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``sentence_transformers.CrossEncoder(folder)`` loads, as does ``--cross-encoder``."""
        self.transformer.save_pretrained(str(folder))

    def _score(self, pairs: list[tuple[str, str]]) -> Tensor:
        features = self.transformer.preprocess(pairs)
        features = {name: x.to(self._device()) if isinstance(x, Tensor) else x for name, x in features.items()}
        return self.transformer(features)["scores"].reshape(-1).float()

    def _device(self) -> torch.device:
        return next(self.transformer.parameters()).device


class WordOverlap(PairScorer):
    """Logistic model on three cheap features of a pair, as a selection model that cannot become the ranker.

    The share of the query's words that the document has, the share of the document's words that the query has, and the
    logarithm of the document's length; each with a trained weight. What lexical retrieval would have pooled scores
    high.

    Shapes:
        Three weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.0, 0.0]))

    def forward(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        return self._features(queries, documents).to(self.weight.device) @ self.weight

    def _features(self, queries: Sequence[str], documents: Sequence[str]) -> Tensor:
        """(n, 3) features of n pairs, from sets of (pair, word) codes."""
        import pyarrow as pa
        import pyarrow.compute as pc

        lists = pc.utf8_split_whitespace(pc.utf8_lower(pa.array([*queries, *documents], pa.large_string())))
        words = pc.list_flatten(lists).dictionary_encode()
        word = torch.tensor(words.indices.to_numpy()).long()
        place = torch.tensor(pc.list_parent_indices(lists).to_numpy()).long()
        pairs, codes = len(queries), word + (place % max(len(queries), 1)) * max(len(words.dictionary), 1)
        asked, there = codes[place < pairs].unique(), codes[place >= pairs].unique()
        of_pair = max(len(words.dictionary), 1)
        in_query, in_document, in_both = (
            torch.bincount(found // of_pair, minlength=pairs).float()
            for found in (asked, there, asked[torch.isin(asked, there)])
        )
        return torch.stack(
            [in_both / in_query.clamp_min(1), in_both / in_document.clamp_min(1), in_document.log1p()], dim=1
        )
