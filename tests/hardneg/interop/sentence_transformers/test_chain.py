"""Our chain in sentence-transformers' trainer equals its own losses where both are defined alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as theirs

from hardneg.interop.sentence_transformers import ChainLoss
from hardneg.interop.sentence_transformers.content import content_of
from hardneg.losses import InfoNCE, TripletMargin
from miners import GIST, InBatch, MemoryQueue, PositiveAware, SelfBlocks
from tests.hardneg.interop.conftest import texts


def columns(number: int, rows: int = 7) -> list[list[str]]:
    """Different texts: anchors, positives, negatives."""
    every = texts(rows * number, seed=number)
    return [every[rows * at : rows * (at + 1)] for at in range(number)]


def step(loss: torch.nn.Module, data: Sequence[list[str]], labels: Any = None) -> tuple[float, list[torch.Tensor]]:
    """Value of the loss over the texts, and the gradient of every weight."""
    model = loss.model
    model.train()
    model.zero_grad()
    features = [model.preprocess(column) for column in data]
    value = loss(features, None if labels is None else torch.tensor(labels))
    value.backward()
    return float(value.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_equal(ours: tuple[float, list[torch.Tensor]], others: tuple[float, list[torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(others[0], rel=1e-5)
    assert len(ours[1]) == len(others[1]) > 5
    assert max(float(g.abs().max()) for g in others[1]) > 1e-3
    for gradient, other in zip(ours[1], others[1], strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_in_batch_equals_multiple_negatives_ranking(student, number):
    data = columns(number)
    assert_equal(
        step(ChainLoss(student, loss=InfoNCE(0.05)), data),
        step(theirs.MultipleNegativesRankingLoss(student, scale=20.0), data),
    )


@pytest.mark.parametrize("number", [2, 4])
def test_gradient_caching_equals_theirs(student, number):
    data = columns(number)
    cached = step(ChainLoss(student, mini_batch_size=3), data)
    assert_equal(cached, step(theirs.CachedMultipleNegativesRankingLoss(student, mini_batch_size=3), data))
    assert_equal(cached, step(ChainLoss(student), data))


def test_both_directions_equal_the_symmetric_loss(student):
    data = columns(2)
    symmetric = theirs.MultipleNegativesRankingLoss(
        student, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    ours = ChainLoss(student, directions=("query_to_document", "document_to_query"))
    assert_equal(step(ours, data), step(symmetric, data))


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("self_blocks", [True, False])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.1), ("relative", 0.1)])
def test_guided_equals_gist(student, guide, number, self_blocks, strategy, margin):
    data = columns(number)
    chain = [InBatch(), *([SelfBlocks()] if self_blocks else []), GIST(margin, strategy)]
    peer = theirs.GISTEmbedLoss(student, guide, 0.05, strategy, margin, self_blocks, self_blocks)
    ours = step(ChainLoss(student, chain, InfoNCE(0.05), guide), data)
    assert_equal(ours, step(peer, data))
    unguided = step(ChainLoss(student, chain[:-1], InfoNCE(0.05)), data)
    assert abs(ours[0] - unguided[0]) > 1e-3  # the guide had something to drop


def test_a_guide_with_another_tokenizer_reads_the_decoded_text(student, other_guide_folder):
    guide = SentenceTransformer(str(other_guide_folder), device="cpu")
    data = columns(3)
    peer = theirs.GISTEmbedLoss(student, guide, 0.05)
    assert peer.must_retokenize
    assert_equal(
        step(ChainLoss(student, [InBatch(), SelfBlocks(), GIST()], InfoNCE(0.05), guide), data), step(peer, data)
    )


def test_guided_with_several_negatives_equals_the_cached_loss(student, guide):
    data = columns(4)
    peer = theirs.CachedGISTEmbedLoss(student, guide, temperature=0.05, mini_batch_size=3)
    chain = [InBatch(), SelfBlocks(), GIST()]
    assert_equal(step(ChainLoss(student, chain, InfoNCE(0.05), guide, mini_batch_size=4), data), step(peer, data))


def test_equal_texts_are_never_negatives(student):
    anchors, positives = columns(2, rows=4)
    clean = step(ChainLoss(student), [anchors, positives])[0]
    # the second positive of an anchor, a duplicate of a positive, and the anchor's own text
    doubled = ChainLoss(student)
    step(doubled, [[anchors[0], anchors[0], anchors[2], anchors[3]], positives])
    assert doubled.pools[0].usable.tolist()[0] == [False, False, True, True]
    assert doubled.pools[0].usable.tolist()[2] == [True, True, False, True]
    step(doubled, [anchors, [positives[0], positives[0], positives[2], anchors[3]]])
    assert doubled.pools[0].usable.tolist()[0] == [False, False, True, True]
    assert doubled.pools[0].usable.tolist()[3] == [True, True, True, False]
    assert clean > 0


def test_a_negative_that_repeats_the_positive_is_an_empty_slot(student):
    anchors, positives, first, second = columns(4, rows=4)
    ragged = [*second[:2], *positives[2:]]  # two rows have one negative only
    loss = ChainLoss(student)
    value, _ = step(loss, [anchors, positives, first, ragged])
    assert loss.pools[0].usable.sum().item() == 4 * (3 + 6)
    peer = theirs.MultipleNegativesRankingLoss(student)
    candidates = student.encode([*positives, *first, *second[:2]], convert_to_tensor=True)
    queries = student.encode(anchors, convert_to_tensor=True)
    logits = 20 * torch.nn.functional.cosine_similarity(queries[:, None], candidates[None], dim=2)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert step(peer, [anchors, positives, first, ragged])[0] > value + 1e-4


def test_own_negatives_know_their_row(student):
    loss = ChainLoss(student, [InBatch(drawn="own")])
    step(loss, columns(4, rows=3))
    drawn = loss.pools[0].negatives[1]
    assert drawn.usable.tolist() == [[True, False, False] * 2, [False, True, False] * 2, [False, False, True] * 2]


def test_classes_beside_pairs_mask(student):
    loss = ChainLoss(student, labels="class")
    step(loss, columns(3, rows=4), [1, 1, 2, 3])
    assert loss.pools[0].usable[0].tolist() == [False, False, True, True] + [True] * 4
    assert int(loss.pools[0].dropped["same_label"]) == 2  # not the own positives, counted before


def test_one_column_of_classes_makes_positives(student):
    loss = ChainLoss(student, loss=TripletMargin(margin=0.5, num_negatives=10))
    value, _ = step(loss, columns(1, rows=6), [0, 0, 1, 1, 2, 2])
    x = torch.nn.functional.normalize(student.encode(columns(1, rows=6)[0], convert_to_tensor=True), dim=1)
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    s, same = x @ x.T, classes[:, None] == classes
    hinges = [
        float((s[i, n] - s[i, p] + 0.5).clamp_min(0))
        for i in range(6)
        for p in range(6)
        for n in range(6)
        if same[i, p] and i != p and not same[i, n]
    ]
    assert value == pytest.approx(sum(hinges) / len(hinges), rel=1e-5)


def test_relevance_turns_documents_into_negatives(student):
    anchors, documents = columns(2, rows=4)
    anchors[1] = anchors[0]  # a positive and a negative of one anchor, as in mined labelled pairs
    loss = ChainLoss(student, labels="relevance")
    value, _ = step(loss, [anchors, documents], [1, 0, 1, 1])
    pool = loss.pools[0]
    assert pool.usable[0].tolist() == [False, True, True, True]
    queries = student.encode(anchors, convert_to_tensor=True)
    logits = 20 * torch.nn.functional.cosine_similarity(
        queries[:, None], student.encode(documents, convert_to_tensor=True)[None], dim=2
    )
    kept = torch.tensor([0, 2, 3])
    assert value == pytest.approx(float(torch.nn.functional.cross_entropy(logits[kept], kept)), rel=1e-5)


def test_a_queue_is_written_after_the_step_and_kept(student):
    loss = ChainLoss(student, [InBatch(), MemoryQueue(size=100)])
    step(loss, columns(2, rows=4))
    assert len(loss.pools[0].negatives) == 1
    student.eval()
    with torch.no_grad():
        loss([student.preprocess(column) for column in columns(2, rows=4)])
    step(loss, columns(3, rows=4))
    assert [block.items.embeddings.shape[-2] for block in loss.pools[0].negatives] == [4, 4, 4]
    again = ChainLoss(student, [InBatch(), MemoryQueue(size=100)])
    again.load_chain_state(loss.chain_state())
    assert again.steps == 2
    assert len(again.chain_of("query_to_document")[1]) == 8
    with pytest.raises(ValueError, match="another one"):
        ChainLoss(student, [InBatch()], InfoNCE(learn_temperature=True)).load_chain_state(loss.chain_state())


def test_content_is_the_same_however_it_is_padded(student, tiny_model):
    short, long = student.preprocess(["ba", "be ba"]), student.preprocess(["ba be bi", "ba", "be ba"])
    assert content_of(short).tolist() == content_of(long)[1:].tolist()
    assert len(content_of(long).unique()) == 3
    assert content_of(student.preprocess(["ba be"])) != content_of(student.preprocess(["be ba"]))
    bags = SentenceTransformer(str(tiny_model), device="cpu")
    assert content_of(bags.preprocess(["the cat", "dog"])).tolist() == [
        content_of(bags.preprocess([text])).item() for text in ("the cat", "dog")
    ]
    assert content_of({"pixel_values": torch.zeros(2, 3), "input_ids": torch.zeros(2, 3).long()}) is None
    flat = {"input_ids": torch.tensor([[5, 6, 7]]), "cu_seq_lens_q": torch.tensor([0, 1, 3])}
    padded = {"input_ids": torch.tensor([[5, 0], [6, 7]]), "attention_mask": torch.tensor([[1, 0], [1, 1]])}
    assert content_of(flat).tolist() == content_of(padded).tolist()


def test_bags_of_words_train(tiny_model):
    bags = SentenceTransformer(str(tiny_model), device="cpu")
    value, (gradient,) = step(ChainLoss(bags), [["cat", "dog"], ["the cat", "the dog"]])
    assert value > 0
    assert float(gradient.abs().sum()) > 0
    with pytest.raises(ValueError, match="leave mini_batch_size out"):
        ChainLoss(bags, mini_batch_size=2)


def test_a_loss_of_pytorch_metric_learning_takes_the_chain(student):
    from pytorch_metric_learning.losses import NTXentLoss

    from hardneg.interop.pytorch_metric_learning import MetricLoss

    data, chain = columns(4), [InBatch(drawn="own")]
    assert_equal(
        step(ChainLoss(student, chain, MetricLoss(NTXentLoss(0.05))), data),
        step(ChainLoss(student, chain, InfoNCE(0.05)), data),
    )


def test_the_student_is_no_guide_of_its_own(student, student_folder):
    chain = [InBatch(), GIST()]
    with pytest.raises(ValueError, match="the guide has the student's own weights"):
        ChainLoss(student, chain, guide=SentenceTransformer(str(student_folder), device="cpu"))
    ChainLoss(student, chain, guide=student, allow_same_guide=True)


def test_a_guide_is_no_weight_of_the_loss(student, guide):
    loss = ChainLoss(student, [InBatch(), GIST()], guide=guide)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in student.parameters()}


def test_the_card_says_what_was_trained(student):
    config = ChainLoss(student, [InBatch(), PositiveAware(0.1)], InfoNCE(0.02)).get_config_dict()
    assert config["temperature"] == 0.02
    assert config["miners"] == ["InBatch()", "PositiveAware()"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: ChainLoss(m, [InBatch(), GIST()]), "GIST needs"),
        (lambda m: ChainLoss(m, labels="score"), "wants 'class', 'relevance' or None"),
        (lambda m: ChainLoss(m, directions=()), "query_to_document"),
        (lambda m: ChainLoss(m, mini_batch_size=0), "at least 1"),
        (lambda m: ChainLoss(m, loss=InfoNCE(learn_temperature=True), mini_batch_size=2), "weights of its own"),
        (lambda m: step(ChainLoss(m), columns(1)), "one column and no classes"),
        (lambda m: step(ChainLoss(m), columns(2), [0] * 7), "say what they mean"),
        (lambda m: step(ChainLoss(m, labels="class"), columns(2)), "found no column of labels"),
        (lambda m: step(ChainLoss(m, labels="class"), columns(2), [0.5] * 7), "one whole number per row"),
        (lambda m: step(ChainLoss(m, labels="relevance"), columns(2), [2] * 7), "0 or 1 per row"),
    ],
)
def test_mistakes_say_what_to_do(student, make, message):
    with pytest.raises(ValueError, match=message):
        make(student)
