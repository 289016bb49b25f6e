"""Rows of tables: one class against corrupted copies of itself (CLAN), or rows against each other (SimCLR, MEOW)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.batch import Batch
from datamodules.tabular import DRAWN, SPACE
from hardneg.encoders.tabular import RawFeatures, TabularEncoder
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.metrics.anomaly import AnomalyMeasures, evaluate_anomalies
from hardneg.metrics.classification import ClassMeasures, accuracy_and_macro_f1, evaluate_classes
from hardneg.modules.evaluated import EvaluatedModule
from hardneg.modules.gather import in_order
from miners.base import PoolMiner, process_count, process_rank
from miners.pool import NOBODY, Block, Items, NegativePool, StepContext


class TabularModule(EvaluatedModule):
    """Train an encoder of rows without labels.

    With ``positives`` "rows" all rows of a batch are positives of each other and the drawn side holds the negatives:
    one class becomes one cap of the sphere, and what lies away from its centre is an anomaly. With "copies" the
    corrupted copy of a row is its positive, and negatives are the copies of the others, as in SimCLR.

    Data with a benign class are evaluated by AUROC of the anomaly score; data without by a linear probe and nearest
    neighbours on frozen features.

    Args:
        encoder: a `TabularEncoder`, or `RawFeatures` to measure the rows as they are.
        positives: of a row: the other "rows" of the batch (of its class, with data.init_args.mask_labels), or its own
            corrupted copy ("copies"). Both want `AugmentedNegatives` among data.init_args.sources.
        loss: None = InfoNCE at temperature 0.2. CLAN's own: `PairMargin`.
        miners: None = [InBatch()].
        score: of an anomaly: "cosine", minus the cosine with the mean of the benign training rows; "norm", the length
            of the vector, which with `RawFeatures` is the distance of a standardised row from the mean.
        few_labels: at test, also fine-tune a classifier on so many labelled rows of each class: [8, 32, 128].
        neighbours: that vote in "kNN".
        eval_batch_size: rows per batch in evaluation.
        learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size: as in `ContrastiveModule`.

    Raises:
        ValueError: an option out of range; a batch of one row; no corrupted copies where they are wanted.

    Source:
        CLAN, arXiv 2509.06550; SimCLR, arXiv 2002.05709.
    """

    def __init__(
        self,
        encoder: TabularEncoder | RawFeatures,
        positives: Literal["rows", "copies"] = "rows",
        loss: PoolLoss | None = None,
        miners: Sequence[PoolMiner] | None = None,
        score: Literal["cosine", "norm"] = "cosine",
        few_labels: Sequence[int] = (),
        neighbours: int = 5,
        eval_batch_size: int = 4096,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_share: float = 0.1,
        schedule: Literal["linear", "constant"] = "linear",
        seed: int = 0,
        chunk_size: int | None = None,
    ) -> None:
        loss = InfoNCE(0.2) if loss is None else loss
        super().__init__(loss, miners, learning_rate, weight_decay, warmup_share, schedule, seed, chunk_size)
        if positives not in ("rows", "copies"):
            raise ValueError(f"TabularModule(positives='{positives}'): wants 'rows' or 'copies'.")
        if score not in ("cosine", "norm"):
            raise ValueError(f"TabularModule(score='{score}'): wants 'cosine' or 'norm'.")
        if min(few_labels, default=1) < 1:
            raise ValueError(f"TabularModule(few_labels={list(few_labels)}): wants numbers of rows, at least 1 each.")
        self.encoder = encoder
        self.positives, self.score, self.few_labels = positives, score, tuple(few_labels)
        self.neighbours, self.eval_batch_size = neighbours, eval_batch_size
        self.directions = ("row_to_rows",) if positives == "rows" else ("row_to_copy",)
        kind = {"drawn"} if positives == "rows" else {"own_positive"}
        self.provides = frozenset({"embeddings", "sides", "one_space"} | kind)
        self.measures: AnomalyMeasures | ClassMeasures | None = None
        self.use_miners()

    # ---- training ----------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch) -> dict[str, Items]:
        return {
            side: replace(items, embeddings=self.encoder(batch.inputs[side])) for side, items in batch.items.items()
        }

    def pools(self, sides: Mapping[str, Items], batch: Batch, context: StepContext) -> list[NegativePool]:
        own = torch.arange(len(batch), device=batch.rows.device)[context.own]
        rows = sides[SPACE]
        if DRAWN not in sides:
            raise ValueError(
                "TabularModule wants corrupted copies of its rows, and the batch has none. Put "
                "miners.AugmentedNegatives into data.init_args.sources."
            )
        if self.positives == "rows":
            roles = {"anchors": rows, "drawn": sides[DRAWN]}
            positives = Block(rows, "positive", usable=_others(rows, own))
        else:
            copies = _copies(rows, sides[DRAWN])
            roles = {"anchors": rows, "positives": copies}
            parts = {name: part[:, None] for name, part in copies.take(own).tensors().items() if name == "ids"}
            vectors = copies.take(own)._need("embeddings")[:, None]
            positives = Block(Items(vectors, space=SPACE, **parts), "positive")
        return [
            NegativePool(
                anchors=rows.take(own),
                positives=positives,
                temperature=self.loss.temperature,
                direction=self.directions[0],
                sides=roles,
                known=batch.known.select(own),
                context=context,
            )
        ]

    def setup(self, stage: str) -> None:
        self.encoder.columns = self.data.columns

    def embed_share(self, space: str, encoder: nn.Module | None = None, ids: Tensor | None = None) -> Tensor:
        rows = self.data.features[self._things(space, ids)[process_rank() :: process_count()]]
        return (encoder or self.encoder).embed(rows, space, self.eval_batch_size)  # type: ignore[operator]

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Items:
        return replace(batch.items[SPACE], embeddings=self.encoder(batch.inputs[SPACE]).float())

    def save_pretrained(self, folder: str) -> None:
        """Write the encoder as a folder that ``TabularEncoder.from_pretrained(folder)`` loads."""
        self.encoder.save_pretrained(folder)

    def anomaly_scores(self, data: Any, ids: Tensor) -> Tensor:
        """(n,) how strange rows are, each process its share; higher = further from the benign training rows."""
        if self.score == "norm":
            return self._vectors(data, ids).norm(dim=1)
        # of vectors as they are: those that the encoder is sure of count more, as in the published code
        centre = self._vectors(data, data.training_rows).mean(0)
        return -F.cosine_similarity(self._vectors(data, ids), centre[None])

    def evaluate(self, split: str, data: Any) -> AnomalyMeasures | ClassMeasures:
        """Anomalies where the data have a benign class, classes where not."""
        ids, queries = data.ids(split), data.queries(split)[0]
        names = data.names(SPACE)
        if data.benign is not None:
            scores = self.anomaly_scores(data, ids)
            strange = torch.isin(ids, queries)
            called = [names[row] for row in queries.tolist()]
            return evaluate_anomalies(scores[~strange], scores[strange], data.labels[queries], data.classes, called)
        train = data.labelled()
        share = torch.cat([train, queries])[process_rank() :: process_count()]
        found = self.encoder.embed_features(data.features[share], self.eval_batch_size)
        found = in_order(found, len(train) + len(queries), self.device)
        return evaluate_classes(
            {SPACE: found[: len(train)]},
            train,
            data.labels,
            {SPACE: found[len(train) :]},
            queries,
            names,
            self.neighbours,
        )

    def _vectors(self, data: Any, ids: Tensor) -> Tensor:
        share = self.encoder.embed(data.features[ids[process_rank() :: process_count()]], SPACE, self.eval_batch_size)
        return in_order(share, len(ids), self.device)

    def _evaluate(self, split: str, prefix: str) -> None:
        self.measures = self.evaluate(split, self.data)
        means = dict(self.measures.means)
        if prefix == "test" and self.few_labels:
            means |= self._with_few_labels(split)
            self.measures = replace(self.measures, means=means)
        size = len(self.data.queries(split)[0])
        self.log_dict({f"{prefix}/{name}": value for name, value in means.items()}, batch_size=size)

    def _with_few_labels(self, split: str) -> dict[str, float]:
        """Accuracy and macro-F1 over all classes of the split, benign rows among them, by number of labels."""
        if not isinstance(self.encoder, TabularEncoder):
            raise ValueError("few_labels fine-tunes a TabularEncoder; RawFeatures has nothing to tune.")
        data = self.data
        found: dict[str, float] = {}
        test = data.ids(split)
        for number in self.few_labels:
            rows = data.few_labels(number, self.seed)
            model = fit_few_labels(
                self.encoder, data.features[rows], data.labels[rows], len(data.classes), seed=self.seed
            )
            predicted = predict_classes(model, data.features[test])
            accuracy, f1 = accuracy_and_macro_f1(data.labels[test], predicted)
            found |= {f"accuracy with {number} labels": accuracy, f"macro-F1 with {number} labels": f1}
        return found


def fit_few_labels(
    encoder: TabularEncoder,
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-6,
    seed: int = 0,
) -> nn.Sequential:
    """Fine-tune a copy of an encoder, with one linear layer on its vectors, on a few labelled rows.

    Cross-entropy and AdamW over all weights; rows are drawn with replacement, each class equally often.

    Args:
        encoder: pre-trained, or fresh for training from scratch; not changed.
        features, labels: (n, F), (n,).
        classes: how many there are; some may have no row.

    Returns:
        The classifier, in evaluation mode, on the encoder's device.

    Raises:
        ValueError: no row, a label that is no class, or a value that is not finite.

    Source:
        CLAN's code (the paper's learning rate, 1e-6, would leave the weights where they are). Differs: rows keep the
        standardisation of the training rows.
    """
    if not len(labels):
        raise ValueError("fit_few_labels got no labelled row.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"fit_few_labels: labels run from {int(labels.min())} to {int(labels.max())}, of {classes}.")
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise ValueError(f"fit_few_labels: row {row} of {len(features)} has a value that is not finite.")
    device = encoder.head.weight.device
    # a test turns gradients off, and is where this is asked for
    with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
        features, labels = features.to(device), labels.to(device)
        torch.manual_seed(seed)
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(encoder.dim, classes)).to(device)
        model.requires_grad_().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
        weight = 1.0 / torch.bincount(labels, minlength=classes).clamp_min(1)[labels].double()
        for _ in range(epochs):
            for at in torch.multinomial(weight, len(labels), replacement=True).split(batch_size):
                loss = F.cross_entropy(model(features[at]), labels[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


@torch.inference_mode()
def predict_classes(model: nn.Sequential, features: Tensor, batch_size: int = 4096) -> Tensor:
    """(n,) classes of rows (n, F), on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).argmax(1).cpu() for part in features.split(batch_size)])


def _others(rows: Items, own: Tensor) -> Tensor:
    """(B, G) which rows are positives of this process' anchors: all others, of its class where classes are known."""
    if len(rows) < 2:
        raise ValueError(
            "a batch of one row has no positive. Set data.init_args.drop_last: true, or a larger batch_size."
        )
    usable = torch.arange(len(rows), device=own.device)[None] != own[:, None]
    if rows.labels is not None:
        usable = usable & (rows.labels[None] == rows.labels[own, None]) & (rows.labels != NOBODY)
    return usable


def _copies(rows: Items, drawn: Items) -> Items:
    """The one corrupted copy of each row, under the row's own id."""
    assert rows.ids is not None
    assert drawn.rows is not None
    if len(drawn) != len(rows) or not torch.equal(drawn.rows, torch.arange(len(rows), device=drawn.rows.device)):
        raise ValueError(
            f"positives='copies' wants one corrupted copy of each of the {len(rows)} rows, and got {len(drawn)} drawn "
            "rows. Set data.init_args.sources to AugmentedNegatives with per_anchor: 1 alone, and a corruption that "
            "changes every row: Resample's law 'zero' makes no copy of a row of zeros."
        )
    return replace(drawn, ids=rows.ids, labels=rows.labels)
