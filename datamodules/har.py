"""Activity recognition: recordings of one or several signals, cut into windows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.labelled import SPLITS, LabelledData, nested_draw
from datamodules.recording_files import read_recordings, read_splits
from datamodules.recordings import Recordings, Windows, cut, place_skeletons, resample
from miners.base import Row, TrainingTable
from miners.pool import Items
from miners.ragged import Ragged

log = logging.getLogger(__name__)


class HARData(LabelledData):
    """Train on windows of recordings, and evaluate on recordings that share no subject, scene or session with them.

    A training row is a window, in all its modalities: its ids, in the space of each modality, are the same. Recordings
    are put into splits first and cut into windows afterwards, so that no two splits hold windows of one recording.

    Args:
        folder: a folder or file of recordings; `datamodules.recording_files` lists the layouts.
        modalities: which signals, in this order; null = all that the files hold.
        splits: what belongs to "train", "val" and "test", by fields of the recordings: {"train": {"subject": [1, 3]},
            "test": {"subject": [2], "scene": [1]}}; all conditions of a split must hold. Null takes the files' own: a
            field "split", or the split of meta.json that ``split`` names.
        split: name of a split in meta.json.
        window: samples of the first modality in a window; null = the whole recording.
        hop: samples from one window's start to the next's; null = ``window``, without overlap.
        steps: time steps that every window is stretched to, one number or one by modality; null = ``window``.
        mask: which windows are never negatives of each other: those of one "recording" (overlapping windows are nearly
            the same), those of one "subject" (only other people's are negatives), or none but the "window" itself.
        mask_labels: never take a window of the same class as a negative: an oracle, for analysis.
        centre_joint: for joints: the joint that becomes the origin in a recording's first frame; null leaves them.
        bone: for joints: two joints whose distance in the first frame becomes 1.
        label_share: share of the training recordings whose labels evaluation may use, in (0, 1]; each class keeps one.
        label_seed: of their draw. Smaller shares of one seed are parts of larger ones.
        loading: batch_size, batch_miner, sources, drop_last, eval_batch_size, num_workers, seed; see `RowsData`.

    Raises:
        ValueError: numbers out of range; recordings in two splits, a split without recordings, no split at all.
    """

    recordings: Recordings

    def __init__(
        self,
        folder: str,
        modalities: Sequence[str] | None = None,
        splits: Mapping[str, Mapping[str, Sequence[str | int]]] | None = None,
        split: str = "cross_subject",
        window: int | None = None,
        hop: int | None = None,
        steps: int | Mapping[str, int] | None = None,
        mask: str = "recording",
        mask_labels: bool = False,
        centre_joint: int | None = None,
        bone: tuple[int, int] | None = None,
        label_share: float = 1.0,
        label_seed: int = 0,
        **loading: Any,
    ) -> None:
        self.folder = folder
        super().__init__(**loading)
        for name, value in (("window", window), ("hop", hop)):
            if value is not None and value < 1:
                raise ValueError(f"HARData({name}={value}): wants at least 1 sample.")
        if window is None and hop is not None:
            raise ValueError(f"HARData(hop={hop}) needs a window; without one each recording is a single window.")
        if window is None and steps is None:
            raise ValueError("HARData wants a window (samples), or steps that whole recordings are stretched to.")
        if mask not in ("window", "recording", "subject"):
            raise ValueError(f"HARData(mask='{mask}'): wants 'window', 'recording' or 'subject'.")
        if not 0 < label_share <= 1:
            raise ValueError(f"HARData(label_share={label_share}): a share, so 0 < label_share <= 1.")
        if unknown := sorted(set(splits or ()) - set(SPLITS)):
            raise ValueError(f"HARData(splits={unknown}): wants {', '.join(SPLITS)}.")
        self.modalities = None if modalities is None else tuple(modalities)
        self.splits, self.split = splits, split
        self.window, self.hop, self.steps = window, hop, steps
        self.mask, self.mask_labels = mask, mask_labels
        self.centre_joint, self.bone = centre_joint, bone
        self.label_share, self.label_seed = label_share, label_seed
        self.val_split: str | None = "val"
        self.test_split: str | None = "test"
        if splits is not None:
            self.val_split, self.test_split = (name if name in splits else None for name in SPLITS[1:])

    # What Lightning calls

    def setup(self, stage: str) -> None:
        if not hasattr(self, "recordings"):
            self._read()
        if stage == "fit" and self.batches is None:
            rows = self.ids("train")
            content = self.group if self.mask != "window" else torch.arange(len(self.windows))
            table = TrainingTable(
                rows,
                Ragged.from_lists([[row] for row in rows.tolist()]),
                anchor_content=content[rows],
                document_content=content,
                labels=self.labels[rows],
                anchor_names=self.names(self.spaces[0]),
                document_names=self.names(self.spaces[0]),
            )
            self.start(table, self.sources)
            if not len(self.batches):  # type: ignore[arg-type]  # start() has just made them
                raise ValueError(
                    f"{self}: {len(rows)} training windows are fewer than a batch, and drop_last leaves them out. Set "
                    f"data.init_args.batch_size to {max(len(rows) // 2, 2)} or less, or a smaller hop."
                )
            log.info(
                "%s: %d windows of %d recordings to train on, %s",
                self,
                len(rows),
                len(self.windows.recording[rows].unique()),
                ", ".join(self.spaces),
            )

    def collate_rows(self) -> CollateWindows:
        return CollateWindows(self, drawn=bool(self._training().sources))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Windows of the validation split; none without one."""
        return self._window_loader(self.val_split)

    def test_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Windows of the test split; none without one."""
        return self._window_loader(self.test_split)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """All windows, one loader for each modality."""
        everything = list(range(len(self.windows)))
        return [
            self._loader(everything, CollateWindows(self, spaces=(space,)), batch_size=self.eval_batch_size)
            for space in self.spaces
        ]

    # What modules, callbacks and reports ask for

    @property
    def spaces(self) -> tuple[str, ...]:
        """The modalities, in their order."""
        return self.recordings.modalities

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.recordings.classes

    def _drawn(self, rows: Tensor, share: float, seed: int) -> Tensor:
        """A share of the recordings of each class, with all their windows."""
        groups, of = self.group_of_recording[self.windows.recording[rows]].unique(return_inverse=True)
        label = torch.empty(len(groups), dtype=torch.long).index_copy_(0, of, self.labels[rows])
        return nested_draw(label, share, seed)[of]

    def cut(self, ids: Tensor, space: str) -> Tensor:
        """Windows ``ids`` (n,) of a modality: (n, T, ...) float32 in the sensor's units."""
        at, windows = self.recordings, self.windows
        return resample(
            self._signals[space],
            torch.from_numpy(at.offsets[space]),
            windows.recording[ids],
            windows.start[ids],
            windows.stop[ids],
            self.steps_of(space),
        )

    def view(self, ids: Tensor, space: str) -> WindowView:
        """Windows as a sequence that is cut when it is read."""
        return WindowView(self, ids, space)

    def everything(self, space: str) -> tuple[Tensor, WindowView]:
        """What training meets of a modality: ids and windows of the training split."""
        ids = self.ids("train")
        return ids, self.view(ids, space)

    def statistics(self, space: str) -> tuple[Tensor, Tensor]:
        """Mean and scale over the training recordings: a scale for each column of a sensor, one for all of joints."""
        rows = self.windows.recording[self.ids("train")].unique().numpy()
        offsets = self.recordings.offsets[space]
        keep = np.zeros(len(self._signals[space]) + 1, dtype=np.int64)
        np.add.at(keep, offsets[rows], 1)
        np.add.at(keep, offsets[rows + 1], -1)
        samples = self._signals[space][torch.from_numpy(keep.cumsum()[:-1] > 0)]
        if samples.ndim == 3:  # one number for all coordinates, so that a turn stays a turn
            flat = samples.reshape(-1, samples.shape[-1])
            return flat.mean(0), (flat - flat.mean(0)).pow(2).mean().sqrt().clamp_min(1e-6)
        return samples.mean(0), samples.std(0, correction=0).clamp_min(1e-6)

    def steps_of(self, space: str) -> int:
        """T of a modality's windows."""
        steps = self.steps.get(space) if isinstance(self.steps, Mapping) else self.steps
        if steps is None and self.window is None:
            raise ValueError(f"{self}: no steps for '{space}'. Set data.init_args.steps.{space}.")
        return int(steps if steps is not None else self.window)  # type: ignore[arg-type]

    def names(self, space: str) -> Sequence[str]:
        """What a report calls each window; position = id."""
        return self._names

    def __str__(self) -> str:
        return f"HARData({self.folder})"

    # Inside

    def _read(self) -> None:
        recordings = read_recordings(self.folder)
        if self.modalities is not None:
            recordings = recordings.only(self.modalities)
        if len(recordings.modalities) > 2:
            raise ValueError(
                f"{self}: one or two modalities are contrasted, and there are {list(recordings.modalities)}. Choose "
                "with data.init_args.modalities."
            )
        first = recordings.modalities[0]
        windows = cut(np.diff(recordings.offsets[first]), self.window, self.hop)
        self.windows: Windows = windows
        self.labels = torch.from_numpy(recordings.labels)[windows.recording]  # (W,)
        # ready windows may say which of them were cut from one recording
        field = recordings.fields.get("recording", np.array(recordings.names))
        self.group_of_recording = _codes(field)
        of_subject = self.mask == "subject"
        if of_subject and "subject" not in recordings.fields:
            raise ValueError(f"{self}: mask='subject', and the recordings have no field 'subject'.")
        masked = _codes(recordings.fields["subject"]) if of_subject else self.group_of_recording
        self.group = masked[windows.recording]  # (W,)
        self._ids = self._split(recordings)
        if self.val_split not in self._ids:
            self.val_split = None
        if self.test_split not in self._ids:
            self.test_split = None
        self._names = _window_names(recordings, windows)
        self.recordings = recordings
        self._signals = {name: self._placed(name) for name in recordings.modalities}

    def _placed(self, space: str) -> Tensor:
        signal, offsets = self.recordings.signals[space], self.recordings.offsets[space]
        if signal.ndim == 3 and self.centre_joint is not None:
            signal = place_skeletons(signal, offsets, self.centre_joint, self.bone)
        return torch.from_numpy(np.ascontiguousarray(signal))

    def _split(self, recordings: Recordings) -> dict[str, Tensor]:
        """Windows by split; recordings first."""
        wanted = self.splits
        if wanted is None and "split" in recordings.fields:
            there = sorted(set(recordings.fields["split"].tolist()) & set(SPLITS))
            wanted = {name: {"split": [name]} for name in there}
        if wanted is None:
            named = read_splits(self.folder)
            if self.split not in named:
                raise ValueError(
                    f"{self}: nobody says who is trained on and who is tested on. Set data.init_args.splits, such as "
                    f"{{train: {{subject: [...]}}, val: ..., test: ...}}, or give the recordings a column 'split'; the "
                    f"fields are {sorted(recordings.fields)}, splits in meta.json: {sorted(named)}."
                )
            wanted = {name: {"subject": subjects} for name, subjects in named[self.split].items()}
        rows = {name: recordings.where(_texts(conditions)) for name, conditions in wanted.items()}
        if "train" not in rows:
            raise ValueError(f"{self}: no split 'train' among {sorted(rows)}.")
        groups = {name: self.group_of_recording[torch.from_numpy(of)] for name, of in rows.items()}
        for name, of in rows.items():
            if not len(of):
                raise ValueError(f"{self}: the split '{name}' has no recording.")
            for other in rows:
                both = torch.isin(groups[name], groups[other])
                if name < other and bool(both.any()):
                    twice = recordings.names[int(of[int(both.int().argmax())])]
                    raise ValueError(f"{self}: recording '{twice}' is in the splits '{name}' and '{other}'.")
        return {
            name: torch.isin(self.windows.recording, torch.from_numpy(of)).nonzero()[:, 0] for name, of in rows.items()
        }

    def _window_loader(self, split: str | None) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if split is None:
            return []
        return self._loader(self.queries(split)[0].tolist(), CollateWindows(self), batch_size=self.eval_batch_size)


class WindowView(Sequence[Tensor]):
    """Windows (n, T, ...) of a modality, cut when they are read: ``view[3:5]`` is a tensor of two."""

    def __init__(self, data: HARData, ids: Tensor, space: str) -> None:
        self.data, self.ids, self.space = data, ids, space

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: int | slice) -> Tensor:  # type: ignore[override]
        if isinstance(rows, int):
            return self.data.cut(self.ids[rows : rows + 1 or None], self.space)[0]
        return self.data.cut(self.ids[rows], self.space)


class CollateWindows:
    """Turn B `Row`, or ids of windows, into a `Batch` with a side for each modality.

    Sides are named as modalities; "drawn <modality>" holds what sources drew, in that modality.
    """

    def __init__(self, data: HARData, drawn: bool = False, spaces: Sequence[str] | None = None) -> None:
        self.data, self.drawn = data, drawn
        self.spaces = data.spaces if spaces is None else tuple(spaces)

    def __call__(self, rows: Sequence[Row] | Sequence[int]) -> Batch:
        data = self.data
        if isinstance(rows[0], Row):
            index = torch.tensor([row.index for row in rows])  # type: ignore[union-attr]
            ids = data.table.anchors[index]
        else:
            index = ids = torch.tensor(rows)
        inputs: dict[str, Any] = {space: data.cut(ids, space) for space in self.spaces}
        items = {space: self._identities(ids, space) for space in self.spaces}
        if self.drawn:
            drawn = torch.tensor([negative for row in rows for negative in row.negatives], dtype=torch.long)  # type: ignore[union-attr]
            lengths = torch.tensor([len(row.negatives) for row in rows])  # type: ignore[union-attr]
            brought = torch.arange(len(rows)).repeat_interleave(lengths)
            for space in self.spaces:
                inputs[f"drawn {space}"] = data.cut(drawn, space)
                items[f"drawn {space}"] = self._identities(drawn, space, brought)
        return Batch(inputs, items, Ragged.from_lists([[i] for i in ids.tolist()]), index)

    def _identities(self, ids: Tensor, space: str, rows: Tensor | None = None) -> Items:
        data = self.data
        return Items(
            ids=ids,
            content=data.group[ids] if data.mask != "window" else None,
            labels=data.labels[ids] if data.mask_labels else None,
            space=space,
            rows=rows,
        )


def _codes(column: Any) -> Tensor:
    return torch.from_numpy(np.unique(column, return_inverse=True)[1].astype(np.int64))


def _texts(conditions: Mapping[str, Sequence[str | int]]) -> dict[str, list[str]]:
    return {name: [str(value) for value in values] for name, values in conditions.items()}


def _window_names(recordings: Recordings, windows: Windows) -> tuple[str, ...]:
    """The recording's name and subject, and which of its windows where it was cut into several."""
    number = torch.bincount(windows.recording, minlength=len(recordings))
    first = (number.cumsum(0) - number)[windows.recording]
    subjects = recordings.fields.get("subject")
    whole = [
        name if subjects is None else f"{name} of {subject}"
        for name, subject in zip(recordings.names, recordings.names if subjects is None else subjects, strict=True)
    ]
    place = (torch.arange(len(windows)) - first + 1).tolist()
    return tuple(
        f"{whole[row]}, window {at} of {int(number[row])}" if number[row] > 1 else whole[row]
        for row, at in zip(windows.recording.tolist(), place, strict=True)
    )
