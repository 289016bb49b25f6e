"""Text, image and group score: the numbers of the specification, Winoground's, ties, and a loop that says the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardneg.losses import InfoNCE
from hardneg.metrics.compositional import compositional_scores
from miners import Block, InBatch, Items, NegativePool

LOGITS = torch.tensor([[5, 4, 1, 0], [4.5, 4.8, 0, 1], [1, 0, 3, 3.2], [0, 1, 2, 4]])  # rows pictures


def as_vectors(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors whose products are these scores."""
    return scores, torch.eye(scores.shape[1], dtype=scores.dtype)


def test_scores_of_the_specification() -> None:
    found = compositional_scores(*as_vectors(LOGITS), torch.zeros(4, dtype=torch.long))
    assert found["text"].tolist() == [1, 1, 0, 1]
    assert {name: float(of.mean()) for name, of in found.items()} == {
        "text": 0.75,
        "image": 1.0,
        "group": 0.75,
        "text of all": 0.0,
        "image of all": 1.0,
        "group of all": 0.0,
    }


def test_symmetric_loss_of_the_specification() -> None:
    """Two families of two in one batch: image to text .491640, text to image .434689."""
    values = []
    for logits in (LOGITS.double(), LOGITS.double().T):
        ids = torch.arange(4)
        anchors, others = Items(ids=ids, space="a"), Items(ids=ids, space="b")
        positive = Block(Items(ids=ids[:, None], space="b"), "positive", given=logits.diagonal()[:, None])
        sides = {"positives": Block(others, "in_batch", given=logits)}
        total, count = InfoNCE(1.0)(InBatch()(NegativePool(anchors, positive, 1.0, sides=sides)))
        values.append(float(total / count))
    assert values == pytest.approx([0.491640, 0.434689], abs=5e-7)
    assert sum(values) / 2 == pytest.approx(0.463164, abs=1e-6)


def test_siblings_with_one_caption_are_no_negatives_of_each_other() -> None:
    """Both directions: pictures and captions whose caption is the same are one thing; the loss stays finite."""
    content = torch.tensor([7, 7, 8, 9])
    for logits in (LOGITS, LOGITS.T):
        anchors = Items(ids=torch.arange(4), content=content, space="a")
        others = Items(ids=torch.arange(4), content=content, space="b")
        own = Items(ids=torch.arange(4)[:, None], content=content[:, None], space="b")
        positive = Block(own, "positive", given=logits.diagonal()[:, None])
        sides = {"positives": Block(others, "in_batch", given=logits)}
        pool = InBatch()(NegativePool(anchors, positive, 1.0, sides=sides))
        assert not bool(pool.usable[0, 1])
        assert not bool(pool.usable[1, 0])
        assert pool.usable.sum(1).tolist() == [2, 2, 3, 3]
        assert torch.isfinite(InfoNCE(1.0)(pool)[0])


def test_a_tie_is_wrong_and_ordinary_pairs_are_not_scored() -> None:
    found = compositional_scores(*as_vectors(torch.ones(3, 3)), torch.tensor([0, 0, -1]))
    assert {name: of.tolist() for name, of in found.items()} == {name: [0.0, 0.0] for name in found}
    assert all(not len(of) for of in compositional_scores(torch.eye(2), torch.eye(2), torch.tensor([0, 1])).values())


@settings(max_examples=60, deadline=None)
@given(families=st.lists(st.integers(-1, 3), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_a_loop_says_the_same(families: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, captions = (torch.randint(-2, 3, (len(families), 3), generator=generator).float() for _ in range(2))
    found = compositional_scores(images, captions, torch.tensor(families))
    wanted: dict[str, list[float]] = {name: [] for name in found}
    rights = {}
    scores = images @ captions.T
    for i, family in enumerate(families):
        others = [j for j, other in enumerate(families) if other == family and j != i]
        if family >= 0 and others:
            text = all(scores[i, i] > scores[i, j] for j in others)
            image = all(scores[i, i] > scores[j, i] for j in others)
            rights[i] = {"text": text, "image": image, "group": text and image}
    for i, right in rights.items():
        for name, value in right.items():
            wanted[name].append(float(value))
            mates = [other for j, other in rights.items() if families[j] == families[i]]
            wanted[f"{name} of all"].append(float(all(mate[name] for mate in mates)))
    assert {name: of.tolist() for name, of in found.items()} == wanted
