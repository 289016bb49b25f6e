"""Who is compared with whom: paired scores out of the tables, and what can be said of each pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardneg.benchmark.statistics import Estimate, Judgement, estimate, judge, pooled
from hardneg.benchmark.suite import START
from hardneg.benchmark.tables import Results

if TYPE_CHECKING:
    import pandas as pd

ALL = "all data sets"
Kind = tuple[str, str, str]
"""(data, model, chain)"""


@dataclass(frozen=True)
class Compared:
    """A chain against another on one data set, or on all of them together."""

    data: str
    model: str
    chain: str
    judgement: Judgement


def score_tables(results: Results, split: str | None = None) -> dict[Kind, pd.DataFrame]:
    """Scores of the judged measure, a frame with one row per seed and one column per query, for each kind of run."""
    scores = results.scores
    scores = scores[(scores.split == (split or results.split)) & (scores.measure == results.about["measure"])]
    runs = results.runs[results.runs.purpose != "tune"]
    joined = scores.merge(runs[["key", "data", "model", "chain", "seed"]], on="key")
    return {
        kind: part.pivot(index="seed", columns="query", values="value").sort_index(axis=1)
        for kind, part in joined.groupby(["data", "model", "chain"], sort=False)
    }


def differences(left: pd.DataFrame, right: pd.DataFrame, what: str) -> NDArray[np.float64]:
    """(S, Q) left minus right for the seeds of both.

    Raises:
        ValueError: other queries, or no seed in common.
    """
    if list(left.columns) != list(right.columns):
        raise ValueError(f"{what}: the two were asked other queries, so they cannot be compared.")
    seeds = left.index.intersection(right.index)
    if not len(seeds):
        raise ValueError(f"{what}: the two have no seed in common, so they cannot be paired.")
    return left.loc[seeds].to_numpy() - right.loc[seeds].to_numpy()


def against_baseline(results: Results) -> list[Compared]:
    """Every chain, and the untrained model, against the baseline; verdicts are corrected for all of them together."""
    about, tables = results.about, score_tables(results)
    wanted: dict[Kind, Estimate] = {}
    for data, model, chain in _kinds(about):
        base = tables.get((data, model, about["baseline"]))
        mine = tables.get((data, model, chain))
        if base is not None and mine is not None and chain != about["baseline"]:
            if chain == START:  # it has one seed, since training alone makes seeds differ
                mine = mine.iloc[[0] * len(base)].set_axis(base.index)
            wanted[data, model, chain] = estimate(differences(mine, base, f"{data} / {model} / {chain}"))
    return _judged(wanted, about)


def between(a: Results, b: Results, chain_a: str | None = None, chain_b: str | None = None) -> list[Compared]:
    """What ``b`` has more than ``a``, for the chains of both, or for one chain of each.

    Raises:
        ValueError: they have no run in common, or measure different things.
    """
    if (a.about["measure"], a.split) != (b.about["measure"], b.split):
        raise ValueError(
            f"one suite reports {a.about['measure']} on {a.split}, the other {b.about['measure']} on {b.split}."
        )
    first, second = score_tables(a), score_tables(b)
    wanted = {}
    for data, model, chain in second:
        if chain_b is not None and chain != chain_b:
            continue
        other = (data, model, chain_a or chain)
        if other in first and chain != START:
            what = f"{data} / {model} / {chain}"
            wanted[data, model, chain] = estimate(differences(second[data, model, chain], first[other], what))
    if not wanted:
        raise ValueError(
            f"nothing to compare: the first has {sorted({' / '.join(kind) for kind in first})}, the second "
            f"{sorted({' / '.join(kind) for kind in second})}."
        )
    return _judged(wanted, b.about)


def ranks(results: Results) -> tuple[dict[str, float], pd.DataFrame] | None:
    """Mean rank of each chain over data sets and models, 1 = best, and p-values (Holm) of all pairs.

    None where fewer than three chains ran on all of them.
    """
    import pandas as pd

    tables = score_tables(results)
    blocks = [(data, model) for data in results.about["data"] for model in results.about["models"]]
    chains = [c for c in results.about["chains"] if all((*block, c) in tables for block in blocks)]
    if len(chains) < 3:
        return None
    means = pd.DataFrame({c: [tables[(*b, c)].to_numpy().mean() for b in blocks] for c in chains})
    pairs = list(combinations(chains, 2))
    found = [
        pooled([estimate(differences(tables[(*b, one)], tables[(*b, other)], f"{b}: {one}")) for b in blocks])
        for one, other in pairs
    ]
    p_values = pd.DataFrame(1.0, index=chains, columns=chains)
    for (one, other), judged in zip(pairs, judge(found, results.about["margin"], results.about["level"]), strict=True):
        p_values.loc[one, other] = p_values.loc[other, one] = judged.p_difference
    return means.rank(axis=1, ascending=False).mean().to_dict(), p_values


def unlike_weights(results: Results) -> list[str]:
    """Data, model and seed whose chains did not begin with the same weights."""
    trained = results.runs[results.runs.purpose == "run"]
    kinds = trained.groupby(["data", "model", "seed"], sort=False).weights.nunique()
    return [f"{data} / {model} / seed {seed}" for data, model, seed in kinds[kinds > 1].index]


def _kinds(about: Mapping[str, Any]) -> Iterable[Kind]:
    return [(d, m, c) for d in about["data"] for m in about["models"] for c in (START, *about["chains"])]


def _judged(wanted: Mapping[Kind, Estimate], about: Mapping[str, Any]) -> list[Compared]:
    """Judge all differences together, with one over all data sets for each model and chain that has several."""
    together: dict[Kind, list[Estimate]] = {}
    for (_, model, chain), found in wanted.items():
        together.setdefault((ALL, model, chain), []).append(found)
    several = {kind: pooled(of) for kind, of in together.items() if len(of) > 1}
    every = dict(wanted) | several
    judged = judge(list(every.values()), about["margin"], about["level"])
    return [Compared(*kind, each) for kind, each in zip(every, judged, strict=True)]
