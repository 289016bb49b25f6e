"""A classifier on one or two encoders: from scratch, fine-tuned, or on frozen encoders."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.augmentations import Augmentation
from hardneg.encoders.signals import SignalEncoder


class ActivityClassifier(nn.Module):
    """Features of each modality through Linear-BatchNorm-ReLU, side by side into one linear layer.

    Args:
        encoder: its own copy is trained, or left as it is where ``frozen``.
        modalities: which of the encoder's; one is what "one modality at test time" means.
        classes: how many.
        hidden: width for each modality.
        frozen: keep the encoder in evaluation mode and without gradient.

    Source:
        The "fine-tuning" head of CMC-CMKM, arXiv 2205.10071 (there with frozen encoders).
    """

    def __init__(
        self, encoder: SignalEncoder, modalities: Sequence[str], classes: int, hidden: int = 256, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.encoder.requires_grad_(not frozen)
        self.modalities, self.frozen = tuple(modalities), frozen
        self.towers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(encoder.backbones[name].num_features, hidden),  # type: ignore[arg-type]
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(),
                )
                for name in modalities
            }
        )
        self.top = nn.Linear(hidden * len(self.modalities), classes)

    def train(self, mode: bool = True) -> ActivityClassifier:
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, standard: Mapping[str, Tensor]) -> Tensor:
        """Standardised windows by modality -> (B, classes) logits."""
        features = {name: self.encoder.backbones[name](standard[name]) for name in self.modalities}
        return self.top(torch.cat([self.towers[name](part) for name, part in features.items()], 1))


def fit_classifier(
    encoder: SignalEncoder,
    data: Any,
    rows: Tensor,
    *,
    modalities: Sequence[str] | None = None,
    frozen: bool = False,
    augmentations: Mapping[str, Sequence[Augmentation]] | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    encoder_learning_rate: float = 1e-4,
    patience: int = 50,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> ActivityClassifier:
    """Train a classifier on labelled windows; the epoch with the best validation accuracy is kept.

    Adam; the rate is halved after 5 epochs without a better validation accuracy, and training stops after ``patience``
    epochs without a lower validation loss. Without a validation split the last epoch is kept.

    Args:
        encoder: pre-trained, or fresh for training from scratch; not changed. Its scales must be known.
        data: an `HARData` that is set up.
        rows: (n,) labelled training windows, such as ``data.labelled(0.1, seed=3)``.
        modalities: None = all of the encoder's.
        frozen: train the head alone.
        augmentations: of training windows, by modality.
        encoder_learning_rate: of the encoder's weights; set it to ``learning_rate`` when training from scratch.
        seed: of the head's weights, the order of windows and augmentations.

    Returns:
        The classifier in evaluation mode, on ``device``.
    """
    modalities = tuple(modalities or encoder.modalities)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ActivityClassifier(encoder, modalities, len(data.classes), frozen=frozen).to(device)
        train = _Set(model, data, rows, device)
        val = None if data.val_split is None else _Set(model, data, data.queries(data.val_split)[0], device)
        head = [*model.towers.parameters(), *model.top.parameters()]
        groups = [{"params": head, "lr": learning_rate}]
        if not frozen:
            groups.append({"params": list(model.encoder.backbones.parameters()), "lr": encoder_learning_rate})
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=5)
        best, kept, lowest, since = -1.0, copy.deepcopy(model.state_dict()), float("inf"), 0
        for _ in range(epochs):
            model.train()
            for at in torch.randperm(len(rows)).split(batch_size):
                if len(at) == 1 and len(rows) > 1:  # batch norm has nothing to say of a single window
                    continue
                loss = F.cross_entropy(model(train.windows(at, augmentations or {})), train.labels[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if val is None:
                continue
            accuracy, loss_now = val.judge(model)
            schedule.step(accuracy)
            if accuracy > best:
                best, kept = accuracy, copy.deepcopy(model.state_dict())
            lowest, since = (loss_now, 0) if loss_now < lowest else (lowest, since + 1)
            if since >= patience:
                break
        if val is not None:
            model.load_state_dict(kept)
    return model.eval()


@torch.inference_mode()
def predict_classes(model: ActivityClassifier, data: Any, ids: Tensor, batch_size: int = 256) -> Tensor:
    """(n,) classes of windows ``ids``."""
    device = next(model.parameters()).device
    parts = [_standard(model, data, part, device) for part in ids.split(batch_size)]
    return torch.cat([model(part).argmax(1).cpu() for part in parts])


class _Set:
    """Labelled windows, cut and standardised once."""

    def __init__(self, model: ActivityClassifier, data: Any, ids: Tensor, device: str | torch.device) -> None:
        self.inputs = _standard(model, data, ids, device)
        self.labels: Tensor = data.labels[ids].to(device)

    def windows(self, at: Tensor, augmentations: Mapping[str, Sequence[Augmentation]]) -> dict[str, Tensor]:
        out = {name: windows[at] for name, windows in self.inputs.items()}
        for name, windows in out.items():
            for augmentation in augmentations.get(name, ()):
                windows = augmentation(windows)
            out[name] = windows
        return out

    @torch.no_grad()
    def judge(self, model: ActivityClassifier) -> tuple[float, float]:
        model.eval()
        parts = torch.arange(len(self.labels)).split(256)
        logits = torch.cat([model(self.windows(part, {})) for part in parts])
        accuracy = (logits.argmax(1) == self.labels).double().mean()
        return float(accuracy), float(F.cross_entropy(logits, self.labels))


def _standard(model: ActivityClassifier, data: Any, ids: Tensor, device: str | torch.device) -> dict[str, Tensor]:
    return {name: model.encoder.standardise(data.cut(ids, name).to(device), name).detach() for name in model.modalities}
