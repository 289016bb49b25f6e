"""Small sets of recordings, written in the layouts that real ones come in."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ACTIONS, JOINTS = ("wave", "walk", "sit"), 5


def movement(
    action: int, subject: int, trial: int, frames: int = 30, joints: int = JOINTS
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One clip: inertial (2.7 x frames, 6) and skeleton (frames, joints, 3), whose rhythm tells the action."""
    random = np.random.default_rng([action, subject, trial])
    rhythm, phase = 1 + 2 * action, random.uniform(0, 1)

    def wave(steps: int, columns: int) -> NDArray[np.float32]:
        share = np.linspace(0, 1, steps)[:, None]
        weights = np.cos(np.arange(columns) * (1 + action))
        return (
            np.sin(2 * np.pi * (rhythm * share + phase)) * weights + random.normal(0, 0.1, (steps, columns))
        ).astype(np.float32)

    return wave(int(2.7 * frames), 6), wave(frames, 3 * joints).reshape(frames, joints, 3) + 2


def clips(subjects: int = 4, trials: int = 2) -> list[tuple[int, int, int]]:
    """(action, subject, trial), counted from 1."""
    return [
        (action, subject, trial)
        for action in range(1, len(ACTIONS) + 1)
        for subject in range(1, subjects + 1)
        for trial in range(1, trials + 1)
    ]


def write_packed(folder: Path, subjects: int = 4, trials: int = 2, joints: int = JOINTS) -> Path:
    """raw.npz and meta.json, as the packed sets have them; three subjects to train, validate and test on."""
    folder.mkdir(parents=True)
    named = clips(subjects, trials)
    pairs = [movement(*clip, frames=24 + 3 * (number % 4), joints=joints) for number, clip in enumerate(named)]
    arrays: dict[str, NDArray] = {}
    for name, parts in zip(("inertial", "skeleton"), zip(*pairs, strict=True), strict=True):
        arrays[name] = np.concatenate(parts)
        arrays[f"{name}_offset"] = np.r_[0, np.cumsum([len(part) for part in parts])]
    action, subject, trial = np.array(named).T
    np.savez(folder / "raw.npz", action=action, subject=subject, trial=trial, **arrays)
    everyone = list(range(1, subjects + 1))
    splits = {"cross_subject": {"train": everyone[:-2], "val": everyone[-2:-1], "test": everyone[-1:]}}
    meta = {"actions": {str(number): name for number, name in enumerate(ACTIONS, 1)}, "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def write_wharf(folder: Path, length: int = 220) -> Path:
    """One accelerometer: raw.npz with ``acc`` and ``offset``, labels and subjects as positions in meta.json."""
    folder.mkdir(parents=True)
    people = [*(f"f{at}" for at in range(1, 7)), *(f"m{at}" for at in range(1, 12))]
    named = [(label, subject) for label in range(len(ACTIONS)) for subject in range(len(people))]
    parts = [movement(label + 1, subject, 0, frames=length)[0][:length, :3] for label, subject in named]
    label, subject = np.array(named).T
    offset = np.r_[0, np.cumsum([len(part) for part in parts])]
    np.savez(
        folder / "raw.npz", acc=np.concatenate(parts).astype(np.float16), offset=offset, label=label, subject=subject
    )
    (folder / "meta.json").write_text(json.dumps({"activities": ACTIONS, "subjects": people}))
    return folder


def write_mats(folder: Path, subjects: int = 2, trials: int = 1) -> Path:
    """UTD-MHAD's own files."""
    from scipy.io import savemat

    for sub in ("Inertial", "Skeleton"):
        (folder / sub).mkdir(parents=True)
    for action, subject, trial in clips(subjects, trials):
        inertial, skeleton = movement(action, subject, trial)
        stem = f"a{action}_s{subject}_t{trial}"
        savemat(folder / "Inertial" / f"{stem}_inertial.mat", {"d_iner": inertial.astype(np.float64)})
        savemat(
            folder / "Skeleton" / f"{stem}_skeleton.mat", {"d_skel": np.moveaxis(skeleton, 0, 2).astype(np.float64)}
        )
    return folder


def write_sensor_files(
    folder: Path, subjects: Sequence[str] = ("ann", "bob", "cem", "dee"), trials: int = 2, frames: int = 40
) -> Path:
    """What a stranger has: a csv file per recording, and recordings.csv that says who did what."""
    folder.mkdir(parents=True)
    rows = []
    for action, name in enumerate(ACTIONS, 1):
        for number, subject in enumerate(subjects, 1):
            for trial in range(trials):
                signal, _ = movement(action, number, trial, frames=frames)
                file = f"{subject}_{name}_{trial}.csv"
                with (folder / file).open("w", newline="") as out:
                    lines = csv.writer(out)
                    lines.writerow(["time", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"])
                    lines.writerows([[at / 50, *map(float, sample)] for at, sample in enumerate(signal)])
                split = {subjects[-1]: "test", subjects[-2]: "val"}.get(subject, "train")
                rows.append([file, name, subject, split])
    with (folder / "recordings.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["file", "label", "subject", "split"], *rows])
    return folder
