"""Triplets from captions, a rank window and templates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from datamodules import TripletsData
from datamodules.cir_files import read_triplets
from datamodules.generated_triplets import (
    TEMPLATES,
    Generated,
    draw_from_window,
    make_triplets,
    read_captions,
    write_triplets,
)
from miners.draws import generator_for
from miners.store import Store
from tests.composed import COLOURS, PLACES, write_words
from tests.composed import write_triplets as write_set

NAMES = [f"{i}.png" for i in range(30)]
CAPTIONS = {name: f"thing {name[:-4]}" for name in NAMES}


def store() -> Store:
    return Store(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), space="image", names=NAMES)


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_targets_lie_in_the_window_and_cover_it(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.generated_triplets.BLOCK_SCORES", block * 30)
    vectors = store().vectors
    unit = F.normalize(vectors, dim=1)
    scores = unit @ unit.T
    scores.fill_diagonal_(2)
    seen = set()
    for seed in range(30):
        targets = draw_from_window(vectors, 5, 8, generator_for(seed))
        ranks = (scores > scores.gather(1, targets[:, None])).sum(1)
        assert int(ranks.min()) >= 5
        assert int(ranks.max()) <= 8
        seen |= set(ranks.tolist())
    assert seen == {5, 6, 7, 8}


def test_a_picture_is_its_own_rank_0_also_among_twins() -> None:
    vectors = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    assert draw_from_window(vectors, 1, 1, generator_for(0)).tolist()[:2] == [1, 0]


def test_texts_by_templates() -> None:
    made = make_triplets(CAPTIONS, store(), 5, 8)
    assert [each.reference for each in made] == NAMES
    for each in made:
        a, b = CAPTIONS[each.reference], CAPTIONS[each.target]
        assert each.texts == (f"{b} instead of {a}", f"Unlike {a}, I want {b}")
        assert each.right == (each.target,)
    assert make_triplets(CAPTIONS, store(), 5, 8) == made
    assert make_triplets(CAPTIONS, store(), 5, 8, seed=1) != made
    alone = make_triplets(CAPTIONS, store(), 5, 8, [TEMPLATES[2]], references=NAMES[:3], limit=2)
    assert len(alone) == 2
    assert all(each.reference in NAMES[:3] and each.texts == (CAPTIONS[each.target],) for each in alone)
    short = make_triplets(CAPTIONS, store(), 5, 8, fits=lambda text: "Unlike" not in text)
    assert short[0].texts == (made[0].texts[0], CAPTIONS[made[0].target])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = make_triplets(CAPTIONS, store(), 5, 8)
    write_triplets(made, tmp_path / "made.jsonl")
    read = read_triplets(tmp_path / "made.jsonl")
    assert [(e.name, e.reference, e.target, e.texts) for e in read] == [
        (e.name, e.reference, e.target, e.texts) for e in made
    ]


def test_a_data_module_trains_on_them_too(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    names = [f"{colour}_{place}.png" for colour in COLOURS for place in PLACES]
    Store(torch.randn(16, 4), space="image", names=names).save(tmp_path / "store")
    made = make_triplets(read_captions(folder / "pictures.csv"), Store.load(tmp_path / "store"), 1, 3)
    write_triplets(made, tmp_path / "made.jsonl")
    rows = []
    for options in (
        {"extra": str(tmp_path / "made.jsonl")},
        {"captions": str(folder / "pictures.csv"), "generated": Generated(str(tmp_path / "store"), 1, 3)},
    ):
        data = TripletsData(str(folder / "pictures"), str(folder), size=16, **options)
        data.setup("fit")
        assert len(data.table) == 96 + 16
        rows.append((data.references.tolist(), data.targets.tolist(), data.wordings))
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last_rank": 30}, "last_rank below the 30 pictures"),
        ({"first_rank": 0}, "1 <= first_rank"),
        ({"first_rank": 9}, "1 <= first_rank <= last_rank"),
        ({"templates": ["no {ref}"]}, "says nothing of {target}"),
        ({"templates": ["{target} in {place}"]}, "wants {place}; there are {ref} and {target}"),
        ({"templates": ["{target} and {"]}, "is none"),
        ({"templates": []}, r"templates=\[\]\): wants one at least"),
        ({"limit": 0}, r"limit=0\): wants at least 1"),
        ({"limit": -1}, r"limit=-1\): wants at least 1"),
        ({"captions": {**CAPTIONS, "3.png": " "}}, r"'3.png' has no caption \(1 of 30"),
        ({"features": Store(torch.ones(30, 2))}, "wants vectors with names"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"captions": CAPTIONS, "features": store(), "first_rank": 5, "last_rank": 8}
    with pytest.raises(ValueError, match=message):
        make_triplets(**{**arguments, **change})
    if not {"captions", "features"} & set(change) and change.get("last_rank") != 30:  # those are read later
        with pytest.raises(ValueError, match=message):
            Generated("store", **{"first_rank": 5, "last_rank": 8, **change})


def test_texts_that_are_too_long_become_the_targets_caption(tmp_path: Path) -> None:
    write_words(tmp_path / "words")
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *map(",".join, CAPTIONS.items())]) + "\n")
    store().save(tmp_path / "store")
    options = {"tokenizer": str(tmp_path / "words"), "max_tokens": 6}
    made = Generated(str(tmp_path / "store"), 5, 8, **options).make(str(tmp_path / "captions.csv"), "caption", [])
    for each in made:  # "thing 1 instead of thing 2": 6 words; "Unlike thing 2, I want thing 1": 8
        assert each.texts == (f"{CAPTIONS[each.target]} instead of {CAPTIONS[each.reference]}", CAPTIONS[each.target])


def test_extra_and_generated_ones_need_names_of_their_own(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    names = [f"{colour}_{place}.png" for colour in COLOURS for place in PLACES]
    Store(torch.randn(16, 4), space="image", names=names).save(tmp_path / "store")
    made = Generated(str(tmp_path / "store"), 1, 3)
    write_triplets(made.make(str(folder / "pictures.csv"), "caption", []), tmp_path / "made.jsonl")
    options = {"extra": str(tmp_path / "made.jsonl"), "captions": str(folder / "pictures.csv"), "generated": made}
    with pytest.raises(ValueError, match="'made-0' was there before; names must be unique over all splits, and over"):
        TripletsData(str(folder / "pictures"), str(folder), size=16, **options).setup("fit")


def test_generated_wants_captions() -> None:
    with pytest.raises(ValueError, match=r"set data.init_args.captions"):
        TripletsData("pictures", "folder", generated=Generated("store", 1, 3))
