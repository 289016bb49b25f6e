"""Siblings, cousins and neighbours of a label, and what must never be drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from miners import NegativeSource, Ragged, TaxonomyNegatives, TrainingTable
from miners.draws import RowGenerator
from miners.testing import NegativeSourceContract


class TestTaxonomyNegatives(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        groups = torch.arange(100) // 6
        parents = [[100 + int(group)] for group in groups] + [[]] * 17
        return TaxonomyNegatives(Ragged.from_lists(parents), 3, {"siblings": 0.5, "random": 0.5})


class TestCousins(NegativeSourceContract):
    def make(self, table: TrainingTable) -> NegativeSource:
        parents = [[100 + document // 4] for document in range(100)] + [[125 + group // 5] for group in range(25)]
        return TaxonomyNegatives(Ragged.from_lists([*parents, *[[]] * 5]), 4, {"cousins": 1.0})


PARENTS = {"a": ["G1"], "b": ["G1"], "c": ["G1", "G3"], "d": ["G2"], "e": ["G2", "G3"], "f": []}
NAMES = list(PARENTS)


def table(positives: list[str], names: list[str] = NAMES) -> TrainingTable:
    """One row per string; its letters are its positives."""
    lists = Ragged.from_lists([[names.index(letter) for letter in row] for row in positives])
    return TrainingTable(torch.arange(len(positives)), lists, document_names=names)


def write(folder: Path, parents: dict[str, list[str]], names: dict[str, str] | None = None) -> Path:
    path = folder / "parents.jsonl"
    rows = [{"child": child, "parent": of} | ({"name": names[child]} if names else {}) for child, of in parents.items()]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def draws(source: TaxonomyNegatives, rows: list[int], positives: list[int], epochs: int = 1) -> list[list[list[int]]]:
    out = []
    for epoch in range(epochs):
        found = source.draw(torch.tensor(rows), torch.tensor(positives), epoch, RowGenerator(0, epoch, 1))
        assert torch.equal(found.usable, found.ids >= 0)
        out.append(found.ids.tolist())
    return out


def related(source: TaxonomyNegatives, relation: str = "siblings") -> dict[str, str]:
    lists, _ = source.related(torch.arange(len(NAMES)), relation)
    return {name: "".join(NAMES[i] for i in found) for name, found in zip(NAMES, lists.to_lists(), strict=True)}


def test_t1_siblings(tmp_path: Path) -> None:
    source = TaxonomyNegatives(write(tmp_path, PARENTS), num_negatives=2)
    source.attach(table(["a", "f", "d"]))
    assert related(source) == {"a": "bc", "b": "ac", "c": "abe", "d": "e", "e": "cd", "f": ""}
    (drawn,) = draws(source, [1], [NAMES.index("f")])
    assert source.counts == {"siblings": 0, "random": 0, "fallback": 2}  # counted once for each negative
    assert sorted(drawn[0]) == [0, 3]  # random ones are somebody's positives


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_any_table_of_parents(kind: str, tmp_path: Path) -> None:
    pairs = [(child, parent) for child, of in PARENTS.items() for parent in of]
    path = tmp_path / f"parents.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"child": [c for c, _ in pairs], "parent": [p for _, p in pairs]}), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"child": c, "parent": p}) for c, p in pairs))
    else:
        comma = "," if kind == "csv" else "\t"
        path.write_text("\n".join(comma.join(row) for row in [("child", "parent"), *pairs]))
    source = TaxonomyNegatives(path)
    source.attach(table(["a"]))
    assert related(source)["c"] == "abe"


def test_cousins_ancestors_and_descendants(tmp_path: Path) -> None:
    """a > b > c as labels; d is b's sibling, e is d's child and c's cousin; groups above them are no labels."""
    parents = {"a": ["G"], "b": ["a"], "c": ["b", "a"], "d": ["a"], "e": ["d"], "f": ["H"], "G": ["top"], "H": ["top"]}
    source = TaxonomyNegatives(write(tmp_path, parents), mix={"siblings": 1, "cousins": 1})
    source.attach(table(["c"]))
    # c is a sibling of b and d (below a) and b's descendant, so b has d alone
    assert related(source) == {"a": "", "b": "d", "c": "d", "d": "bc", "e": "", "f": ""}
    assert related(source, "cousins") == {"a": "f", "b": "", "c": "e", "d": "", "e": "c", "f": "a"}
    (drawn,) = draws(source, [0], [2])
    assert set(drawn[0]) - {-1} == {3, 4}  # never a or b, which c implies


def test_t4_positives_of_the_row_are_never_drawn(tmp_path: Path) -> None:
    source = TaxonomyNegatives(write(tmp_path, PARENTS), num_negatives=2)
    source.attach(table(["ac", "e", "f"]))
    for (drawn,) in draws(source, [0], [0], epochs=20):
        first, second = drawn
        assert first == 1  # b, the only sibling that is no positive
        assert second in (4, 5)
    assert source.counts["fallback"] == source.counts["siblings"] == 20


def test_t2_t3_names_that_contain_one_another_are_left_out(tmp_path: Path) -> None:
    names = {
        "a": "risk management",
        "b": "enterprise risk management",
        "c": "Risk Management",
        "d": "teach chemistry",
        "e": "chemistry",
        "f": "teach history",
    }
    one = {key: ["G"] for key in NAMES}
    source = TaxonomyNegatives(write(tmp_path, one, names), num_negatives=5, name="name")
    source.attach(table(["a", "d", "b", "c", "e", "f"]))
    (drawn,) = draws(source, [0, 1], [0, 3])
    assert set(drawn[0]) - {-1} == {3, 4, 5}
    assert set(drawn[1]) - {-1} == {0, 1, 2, 5}


def test_t7_shares_and_what_is_never_drawn() -> None:
    groups = 40
    documents = groups * 25
    parents = [[documents + document // 25] for document in range(documents)]
    above = [[documents + groups + group // 8] for group in range(groups)]
    lists = Ragged.from_lists([*parents, *above, *[[]] * 5])
    mix = {"siblings": 0.5, "cousins": 0.2, "random": 0.3}
    source = TaxonomyNegatives(lists, 5, mix)
    positives = [[row, (row + 7) % documents] for row in range(documents)]
    known = TrainingTable(torch.arange(documents), Ragged.from_lists(positives))
    source.attach(replace(known, document_content=torch.arange(documents)))
    every = list(range(documents))
    for drawn in draws(source, every, every, epochs=2):
        for row, negatives in enumerate(drawn):
            assert not set(negatives) & set(positives[row])
            assert len(set(negatives)) == 5
    number = 2 * 5 * documents
    assert source.counts.total() == number
    for relation, share in mix.items():
        sigma = (number * share * (1 - share)) ** 0.5
        assert abs(source.counts[relation] - number * share) < 3 * sigma + source.counts["fallback"]
    assert source.counts["fallback"] < 0.01 * number


def test_t8_both_views_know_the_same_pairs(tmp_path: Path) -> None:
    """Classifier k draws a sentence of a sibling; sentence x draws a sibling of its label: the same (x, k) pairs."""
    positives = ["a", "ac", "d", "e", "be"]
    source = TaxonomyNegatives(write(tmp_path, PARENTS), num_negatives=1)
    source.attach(table(positives))
    siblings = related(source)
    classifier = {
        (row, k)
        for k in NAMES
        for near in siblings[k]
        for row, own in enumerate(positives)
        if near in own and k not in own
    }
    seen = set()
    for row, own in enumerate(positives):
        for label in own:
            for (drawn,) in draws(source, [row], [NAMES.index(label)], epochs=15):
                seen |= {(row, NAMES[one]) for one in drawn if one >= 0 and NAMES[one] in siblings[label]}
    assert seen == classifier


def test_each_parent_has_the_same_chance() -> None:
    """Document 0 has a parent with one other child and one with ten."""
    parents = [[12, 13], [12], *[[13]] * 10, [], []]
    rows = torch.arange(2000)
    known = TrainingTable(rows, Ragged.from_lists([[0]] * 2000), document_content=torch.arange(12))
    shares = []
    for balanced in (True, False):
        source = TaxonomyNegatives(Ragged.from_lists(parents), 1, balance_parents=balanced)
        source.attach(known)
        found = source.draw(rows, torch.zeros_like(rows), 0, RowGenerator(0, 0, 1)).ids
        shares.append(float((found == 1).float().mean()))
    # each parent's children count the positive too, which is then taken out: 1/2 x 1/2 against 1/2 x 10/11
    assert shares[0] == pytest.approx(0.25 / (0.25 + 5 / 11), abs=0.035)
    assert shares[1] == pytest.approx(1 / 11, abs=0.02)


def test_neighbours_by_name_are_a_relation_and_the_first_reserve(tmp_path: Path) -> None:
    near = tmp_path / "near.parquet"
    pq.write_table(pa.table({"query_id": ["a", "a", "b", "f"], "doc_id": ["d", "b", "a", "e"]}), near)
    found = {}
    for symmetrise in ("none", "union", "mutual"):
        source = TaxonomyNegatives(write(tmp_path, PARENTS), 1, {"near": 1}, {"near": str(near)}, symmetrise=symmetrise)
        source.attach(table(["a", "f"]))
        found[symmetrise] = related(source, "near")
    assert found["none"] == {"a": "bd", "b": "a", "c": "", "d": "", "e": "", "f": "e"}
    assert found["union"] == {"a": "bd", "b": "a", "c": "", "d": "a", "e": "f", "f": "e"}
    assert found["mutual"] == {"a": "b", "b": "a", "c": "", "d": "", "e": "", "f": ""}
    source = TaxonomyNegatives(write(tmp_path, PARENTS), 1, neighbours={"near": str(near)})
    source.attach(table(["a", "f"]))
    assert draws(source, [1], [5]) == [[[4]]]  # f has no sibling: its neighbour, not the random a
    assert source.counts["fallback"] == 1


def test_spelling_is_a_relation(tmp_path: Path) -> None:
    names = ["manage staff", "manage stock", "manage sales", "supervise staff", "manage a team", "staff"]
    parents = {key: [f"G{key}"] for key in NAMES}
    path = write(tmp_path, parents, dict(zip(NAMES, names, strict=True)))
    source = TaxonomyNegatives(path, 2, {"spelling": 1}, num_spelled=2, name="name")
    source.attach(table(["a"]))
    assert related(source, "spelling")["a"] == "bc"
    assert sorted(draws(source, [0], [0])[0][0]) == [1, 2]
    with pytest.raises(ValueError, match="'spelling' compares names; set name to their column in a table"):
        TaxonomyNegatives(path, mix={"spelling": 1.0})


def test_messages(tmp_path: Path) -> None:
    path = write(tmp_path, PARENTS)
    with pytest.raises(FileNotFoundError, match=r"no table at '.*nowhere\.csv'"):
        TaxonomyNegatives(tmp_path / "nowhere.csv")
    with pytest.raises(
        ValueError, match=r"no relation \['lev'\]; there are \['cousins', 'random', 'siblings', 'spelling'\]"
    ):
        TaxonomyNegatives(path, mix={"lev": 1.0})
    with pytest.raises(ValueError, match="shares are at least 0, and one is above"):
        TaxonomyNegatives(path, mix={"siblings": 0.0})
    with pytest.raises(ValueError, match=r"has the columns \['child', 'parent'\], not \['broader'\]"):
        TaxonomyNegatives(path, parent="broader").attach(table(["a"]))
    with pytest.raises(ValueError, match=r"no 'child' of 7 rows is a document of this data set"):
        TaxonomyNegatives(path).attach(table(["x"], ["x", "y"]))
    with pytest.raises(RuntimeError, match="knows no rows yet"):
        TaxonomyNegatives(path).draw(torch.arange(1), torch.arange(1), 0, RowGenerator(0, 0))
    with pytest.raises(ValueError, match="this training set has none"):
        TaxonomyNegatives(path).attach(replace(table(["a"]), document_names=None))
