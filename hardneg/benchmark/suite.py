"""A suite: data sets x models x chains of miners x seeds under one budget, as a YAML file, and the cells it makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

WORK = "{work}"
"""In an overlay: the cell's own folder, where one phase leaves what the next one reads; removed when the cell ends."""
SHARED = "{shared}"
"""In an overlay: a folder of all cells of a run, for what none of them shapes, such as a guide's vectors."""

START = "start"
TUNE_SEED = 1000  # of trials, unless the suite says otherwise: none that a final run is likely to use
FORM = 1  # raise it when a cell of the same content would be run otherwise

KEYS = {
    "name": "heading of the report",
    "base": "overlays of every cell",
    "data": "name -> overlays",
    "models": "name -> overlays",
    "references": "name -> overlays of models that are measured as they come, such as a guide",
    "chains": "name -> overlays, or a mapping with configs, prepare, tune, peer, seeds",
    "baseline": "the chain that all others are compared with; the first if left out",
    "seeds": "how many, or a list",
    "budget": "{steps: n} or {seconds: n} of training, mining included",
    "points": "evaluations on dev during a fit, the last one included",
    "measure": "what is compared",
    "margin": "differences below it count as equivalent",
    "level": "of all verdicts of a suite together",
    "tune": "overlays tried for every chain that has no `tune` of its own",
    "tune_seed": "seed of the trials",
    "test": "read the test split once, when a cell's training is over",
    "threads": "of one cell; another number rounds otherwise",
    "expect_seconds": "of one cell with everything, for the estimate",
    "logging": "[wandb]",
}
CHAIN_KEYS = ("configs", "prepare", "tune", "peer", "seeds")
OVERLAY_KEYS = ("data", "model", "trainer", "optimizer", "lr_scheduler")

Find = Callable[[str], Path]
Purpose = Literal["run", "tune", "start"]


@dataclass(frozen=True)
class Overlay:
    """A YAML file of `hardneg fit`, or the same written into the suite."""

    name: str
    text: str

    @cached_property
    def content(self) -> Any:
        """What is compared: comments and order of keys are not."""
        return yaml.safe_load(self.text)


@dataclass(frozen=True)
class Phase:
    """One `hardneg fit` or `hardneg predict` of a cell, with its share of the budget (0 for predict)."""

    command: Literal["fit", "predict"]
    overlays: tuple[Overlay, ...]
    share: float


@dataclass(frozen=True)
class Chain:
    """One way of choosing negatives: the column of a suite.

    Args:
        name: as the report shows it.
        configs: overlays, as in ``hardneg fit``.
        prepare: what runs before, on the same budget: ``{fit: overlays, share: 0.5}`` trains and leaves
            ``{work}/model``, ``{predict: overlays}`` leaves ``{work}/stores``. Chains that prepare alike share it,
            and each of them is charged for it.
        tune: overlays of which dev chooses one.
        peer: ``{class_path, init_args}`` of a `Peer` that trains in the place of our trainer.
        seeds: of this chain; None = the suite's.
    """

    name: str
    configs: tuple[Overlay, ...]
    prepare: tuple[Phase, ...] = ()
    tune: tuple[Overlay, ...] = ()
    peer: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation. ``key`` hashes all that shapes it; what has another key is another run."""

    data: str
    model: str
    chain: str
    seed: int
    purpose: Purpose
    option: int  # which overlay of ``tune``, -1 = none
    phases: tuple[Phase, ...]
    peer: Mapping[str, Any] | None
    budget: Mapping[str, float]
    points: int
    test: bool
    threads: int

    @property
    def label(self) -> str:
        """Who it is, whatever its content: what a changed cell keeps."""
        trial = f", option {self.option}" if self.purpose == "tune" else ""
        return f"{self.data} / {self.model} / {self.chain} / seed {self.seed}{trial}"

    @cached_property
    def content(self) -> dict[str, Any]:
        """All that shapes the run, as plain values."""
        phases = [(phase.command, phase.share, [each.content for each in phase.overlays]) for phase in self.phases]
        ours = ("data", "model", "chain", "seed", "purpose", "option", "points", "test", "threads")
        plain = {name: getattr(self, name) for name in ours}
        rest = {"form": FORM, "phases": phases, "peer": self.peer, "budget": dict(self.budget)}
        return json.loads(json.dumps(plain | rest))

    @cached_property
    def key(self) -> str:
        return _hash(self.content)

    @property
    def beginning(self) -> str:
        """As ``key``, of what the chain prepares: cells that have it alike can share it."""
        ours = ("form", "seed", "budget", "points", "threads")
        return _hash({name: self.content[name] for name in ours} | {"phases": self.content["phases"][:-1]})


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """What a suite file says; see `KEYS`."""

    name: str
    base: tuple[Overlay, ...]
    data: Mapping[str, tuple[Overlay, ...]]
    models: Mapping[str, tuple[Overlay, ...]]
    references: Mapping[str, tuple[Overlay, ...]]
    chains: tuple[Chain, ...]
    baseline: str
    seeds: tuple[int, ...]
    budget: Mapping[str, float]
    points: int
    measure: str
    margin: float
    level: float
    tune_seed: int
    test: bool
    threads: int
    expect_seconds: float | None
    logging: tuple[str, ...]

    def start_cells(self) -> list[Cell]:
        """The model as it comes, once for each data set and model, references included."""
        return [
            self._cell(data, model, Chain(START, ()), self.seeds[0], "start")
            for data in self.data
            for model in (*self.models, *self.references)
        ]

    def trials(self) -> list[Cell]:
        """Each option of each chain, with one seed; the test split is not read."""
        return [
            self._cell(data, model, chain, self.tune_seed, "tune", option)
            for data in self.data
            for model in self.models
            for chain in self.chains
            for option in range(len(chain.tune))
        ]

    def runs(self, chosen: Mapping[tuple[str, str, str], int]) -> list[Cell]:
        """The runs that are compared, seed by seed, so that a suite that is stopped has whole seeds.

        Args:
            chosen: (data, model, chain) -> option, for each chain that has some.
        """
        every = dict.fromkeys(seed for chain in self.chains for seed in chain.seeds or self.seeds)
        return [
            self._cell(data, model, chain, seed, "run", chosen[data, model, chain.name] if chain.tune else -1)
            for seed in every
            for data in self.data
            for model in self.models
            for chain in self.chains
            if seed in (chain.seeds or self.seeds)
        ]

    def _cell(self, data: str, model: str, chain: Chain, seed: int, purpose: Purpose, option: int = -1) -> Cell:
        before = (*self.base, *self.data[data], *{**self.models, **self.references}[model])
        tuned = () if option < 0 else (chain.tune[option],)
        rest = 1.0 - sum(phase.share for phase in chain.prepare)
        last = Phase("fit", (*chain.configs, *tuned), 0.0 if purpose == "start" else rest)
        return Cell(
            data,
            model,
            chain.name,
            seed,
            purpose,
            option,
            tuple(Phase(p.command, (*before, *p.overlays), p.share) for p in (*chain.prepare, last)),
            chain.peer,
            {} if purpose == "start" else self.budget,
            0 if purpose == "start" else self.points,
            self.test and purpose != "tune",
            self.threads,
        )


def read_suite(file: Path, find: Find) -> Suite:
    """Read a suite.

    Args:
        file: YAML with the keys of `KEYS`.
        find: where an overlay of that name is.

    Raises:
        FileNotFoundError: an overlay that is neither here nor shipped.
        ValueError: unknown or missing keys, a wrong budget, chains that would be tuned unequally; names file and key.
    """
    given = _yaml(file, _text(file))
    read = _Reader(file, find)
    if not isinstance(given, Mapping):
        raise ValueError(f"{file}: a suite is a mapping with the keys {', '.join(KEYS)}.")
    read.known(given, tuple(KEYS), "suite")
    for name in ("data", "models", "chains", "budget"):
        if not given.get(name):
            raise ValueError(f"{file}: '{name}' is missing ({KEYS[name]}).")
    common = read.options(given.get("tune", ()), "tune")
    chains = tuple(read.chain(str(name), entry, common) for name, entry in read.mapping(given, "chains").items())
    trials = {chain.name: len(chain.tune) for chain in chains}
    if len(set(trials.values())) > 1:
        counts = ", ".join(f"{name} {number}" for name, number in trials.items())
        raise ValueError(
            f"{file}: 'tune' gives the chains unequal chances: {counts} options. Give each as many, or one common list."
        )
    baseline = str(given.get("baseline", chains[0].name))
    if baseline not in trials:
        raise ValueError(f"{file}: baseline '{baseline}' is none of the chains: {', '.join(trials)}.")
    if START in trials:
        raise ValueError(f"{file}: '{START}' is the untrained model; give that chain another name.")
    seeds = read.seeds(given.get("seeds", 5), "seeds")
    suite = Suite(
        name=str(given.get("name", file.stem)),
        base=read.overlays(given.get("base", ()), "base"),
        data={str(n): read.overlays(each, f"data.{n}") for n, each in read.mapping(given, "data").items()},
        models={str(n): read.overlays(each, f"models.{n}") for n, each in read.mapping(given, "models").items()},
        references={
            str(n): read.overlays(each, f"references.{n}")
            for n, each in (read.mapping(given, "references") if given.get("references") else {}).items()
        },
        chains=chains,
        baseline=baseline,
        seeds=seeds,
        budget=read.budget(given["budget"]),
        points=int(read.number(given, "points", 4, at_least=1)),
        measure=str(given.get("measure", "nDCG@10")),
        margin=read.number(given, "margin", 0.01, above=0),
        level=read.number(given, "level", 0.05, above=0, below=1),
        tune_seed=int(read.number(given, "tune_seed", TUNE_SEED, at_least=0)),
        test=bool(given.get("test", False)),
        threads=int(read.number(given, "threads", 1, at_least=1)),
        expect_seconds=read.number(given, "expect_seconds", 0, above=0) if "expect_seconds" in given else None,
        logging=tuple(given.get("logging", ())),
    )
    if both := sorted(set(suite.models) & set(suite.references)):
        raise ValueError(f"{file}: '{both[0]}' is a model and a reference; give the reference another name.")
    if set(suite.logging) - {"wandb"}:
        raise ValueError(f"{file}: logging={list(suite.logging)}: wants [wandb], or nothing.")
    if any(trials.values()) and suite.tune_seed in seeds:
        raise ValueError(f"{file}: tune_seed={suite.tune_seed} is one of the seeds; options would be chosen for it.")
    return suite


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None


def _yaml(file: Path, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 13 is a ValueError
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class _Reader:
    """Reads parts of a suite file; every complaint begins with the file and the key."""

    file: Path
    find: Find

    def known(self, given: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
        if unknown := [str(key) for key in given if key not in keys]:
            raise ValueError(f"{self.file}: {where} has no key '{unknown[0]}'; it has {', '.join(keys)}.")

    def mapping(self, given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        if not isinstance(given[name], Mapping):
            raise ValueError(f"{self.file}: '{name}' wants names ({KEYS[name]}), got {given[name]!r}.")
        return given[name]

    def overlays(self, given: Any, where: str) -> tuple[Overlay, ...]:
        if isinstance(given, str | Mapping):
            given = [given]
        if not isinstance(given, Sequence):
            raise ValueError(f"{self.file}: {where} wants a list of overlays (file names, or their content).")
        return tuple(self._overlay(each, where) for each in given)

    def _overlay(self, given: Any, where: str) -> Overlay:
        if isinstance(given, Mapping):
            self.known(given, OVERLAY_KEYS, f"{where}: an overlay")
            return Overlay(f"{where} (in the suite)", yaml.safe_dump(dict(given), sort_keys=False))
        if not isinstance(given, str):
            raise ValueError(f"{self.file}: {where}: an overlay is a file name or a mapping, got {given!r}.")
        try:
            file = self.find(given)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.file}: {where}: {error}") from None
        text = _text(file)
        _yaml(file, text)
        return Overlay(given, text)

    def options(self, given: Any, where: str) -> tuple[Overlay, ...]:
        if not isinstance(given, list | tuple):
            raise ValueError(f"{self.file}: {where} wants a list of overlays, each an option.")
        return tuple(self._overlay(each, where) for each in given)

    def chain(self, name: str, given: Any, common: tuple[Overlay, ...]) -> Chain:
        where = f"chains.{name}"
        if not (isinstance(given, Mapping) and set(given) & set(CHAIN_KEYS)):  # overlays alone
            return Chain(name, self.overlays(given, where), tune=common)
        self.known(given, CHAIN_KEYS, where)
        prepare = tuple(self._phase(each, f"{where}.prepare") for each in given.get("prepare", ()))
        if sum(phase.share for phase in prepare) >= 1:
            raise ValueError(f"{self.file}: {where}.prepare takes the whole budget; leave a share to the chain.")
        peer = given.get("peer")
        if peer is not None and (not isinstance(peer, Mapping) or set(peer) - {"class_path", "init_args"}):
            raise ValueError(f"{self.file}: {where}.peer wants class_path and init_args, got {peer!r}.")
        return Chain(
            name,
            self.overlays(given.get("configs", ()), f"{where}.configs"),
            prepare,
            self.options(given["tune"], f"{where}.tune") if "tune" in given else common,
            peer,
            self.seeds(given["seeds"], f"{where}.seeds") if "seeds" in given else None,
        )

    def _phase(self, given: Any, where: str) -> Phase:
        if not isinstance(given, Mapping):
            raise ValueError(f"{self.file}: {where} wants mappings like {{fit: [...], share: 0.5}}, got {given!r}.")
        self.known(given, ("fit", "predict", "share"), where)
        if ("fit" in given) == ("predict" in given):
            raise ValueError(f"{self.file}: {where}: each step is one of fit and predict.")
        if "predict" in given:
            return Phase("predict", self.overlays(given["predict"] or (), f"{where}.predict"), 0.0)
        share = self.number(given, "share", 0.5, above=0, below=1, where=where)
        return Phase("fit", self.overlays(given["fit"] or (), f"{where}.fit"), share)

    def seeds(self, given: Any, where: str) -> tuple[int, ...]:
        if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
            return tuple(range(given))
        if isinstance(given, list) and given and all(isinstance(each, int) for each in given):
            return tuple(dict.fromkeys(given))
        raise ValueError(f"{self.file}: {where}={given!r}: wants how many, at least 1, or a list of numbers.")

    def budget(self, given: Any) -> dict[str, float]:
        said = f"{self.file}: budget={given!r}: wants {{steps: n}} or {{seconds: n}}, one of them"
        if not isinstance(given, Mapping) or len(given) != 1 or set(given) - {"steps", "seconds"}:
            raise ValueError(f"{said}.")
        ((unit, amount),) = given.items()
        whole = isinstance(amount, int) or unit == "seconds"
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0 or not whole:
            raise ValueError(f"{said}, {'a whole number above 0' if unit == 'steps' else 'above 0'}.")
        return {unit: amount}

    def number(
        self,
        given: Mapping[str, Any],
        name: str,
        default: float,
        above: float = -float("inf"),
        below: float = float("inf"),
        at_least: float = -float("inf"),
        where: str = "suite",
    ) -> float:
        value = given.get(name, default)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not above < value < below or value < at_least:
            meaning = KEYS.get(name, "a share of the budget")
            raise ValueError(f"{self.file}: {where}: {name}={value!r} is out of range ({meaning}).")
        return value
