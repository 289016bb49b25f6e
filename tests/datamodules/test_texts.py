from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.readers import Place
from datamodules.texts import BLOCK_TEXTS, Texts, TextsBuilder, Vocabulary, content_hash, normalise

PLACE = Place(Path("corpus.jsonl"), 3)
words = st.text(st.characters(exclude_categories=["Cs"]))


@given(words)
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(words)
def test_normalise_ignores_case_and_outer_space(text: str) -> None:
    assert normalise(f"\t {text}\n") == normalise(text) == normalise(text.casefold())


@given(st.text(st.characters(codec="ascii")))
def test_the_short_way_for_ascii_gives_what_the_long_way_gives(text: str) -> None:
    assert normalise(text) == normalise(text + " é").removesuffix("é").rstrip()


@pytest.mark.parametrize(
    ("one", "other"),
    [("ﬁne", "FINE"), ("straße", "STRASSE"), ("e\u0301", "É"), ("a\u00a0 b", "A B"), ("Ⅳ", "iv")],
)
def test_equal_to_a_reader_is_equal(one: str, other: str) -> None:
    assert content_hash(one) == content_hash(other)


def test_different_texts_differ_and_hashes_are_not_negative() -> None:
    hashes = {content_hash(f"text {number}") for number in range(10_000)}
    assert len(hashes) == 10_000
    assert min(hashes) >= 0
    assert max(hashes) < 2**63
    assert content_hash("a b") != content_hash("ab")


def test_content_hash_is_alike_in_every_process_and_release() -> None:
    assert content_hash("Übung  MACHT den Meister") == 5917081773612634918


@given(st.lists(words, unique=True))
def test_vocabulary_goes_there_and_back(names: list[str]) -> None:
    vocabulary = Vocabulary(names)
    assert list(vocabulary) == names == [vocabulary[at] for at in range(len(names))]
    assert vocabulary.ids(names).tolist() == list(range(len(names)))
    assert all(name in vocabulary for name in names)


def test_vocabulary_names_the_double_and_the_unknown() -> None:
    with pytest.raises(ValueError, match="'b' stands twice"):
        Vocabulary(["a", "b", "b"])
    with pytest.raises(KeyError, match="'z'"):
        Vocabulary(["a"]).ids(["z"])
    assert Vocabulary(["a"]).position("z") is None


@given(st.lists(words.filter(lambda text: text and not text.isspace())))
def test_texts_come_back_as_they_were(texts: list[str]) -> None:
    held = Texts.read(((PLACE, str(at), text) for at, text in enumerate(texts)), "document")
    assert list(held) == texts == held[:] == held.take(torch.arange(len(texts)))
    assert held.content.tolist() == [content_hash(text) for text in texts]
    assert pickle.loads(pickle.dumps(held))[::-1] == texts[::-1]  # noqa: S301  (its own bytes)


def test_texts_of_more_than_one_block() -> None:
    count = 2 * BLOCK_TEXTS + 3
    held = Texts.read(((PLACE, f"d{at}", f"text {at}") for at in range(count)), "document")
    assert len(held) == count
    assert held.take([count - 1, 0, BLOCK_TEXTS, 0]) == [f"text {at}" for at in (count - 1, 0, BLOCK_TEXTS, 0)]
    assert held[-1] == f"text {count - 1}"
    with pytest.raises(IndexError):
        held.take([count])


def test_texts_name_the_line_of_a_double_and_of_an_empty_one() -> None:
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 3: duplicate id: document 'a' was there before"):
        Texts.read([(PLACE, "a", "x"), (PLACE, "a", "y")], "document")
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match=r"corpus\.jsonl, line 3: empty text: query 'a' has nothing to encode"):
            Texts.read([(PLACE, "a", empty)], "query")


def test_a_text_without_a_name_is_taken_once_and_keeps_its_name_elsewhere() -> None:
    one, other = TextsBuilder("document"), TextsBuilder("document")
    assert [one.add_once(PLACE, text) for text in ("a", "b", "a")] == [0, 1, 0]
    assert other.add_once(PLACE, "b") == 0
    assert one.names[1] == other.names[0]
