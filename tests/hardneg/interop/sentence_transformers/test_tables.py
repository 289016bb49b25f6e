"""A mined table as training data: ragged lists, every positive, and the loss that it should give."""

from __future__ import annotations

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch.nn.functional import normalize

from hardneg.interop.sentence_transformers import ChainLoss, training_rows
from miners.offline import MaxScore, MinedNegatives, mine
from tests.hardneg.interop.conftest import texts

QUERIES, DOCUMENTS = texts(6, seed=1), texts(20, seed=2, length=4)


def mined(num_negatives: int = 3) -> MinedNegatives:
    generator = torch.Generator().manual_seed(0)
    queries, corpus = (normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (6, 20))
    known = [[0, 1], [2], [3], [4], [5], [6]]
    return mine(queries, corpus, known, num_negatives=num_negatives, search_depth=4, filters=[MaxScore(0.6)])


def test_every_positive_has_a_row_and_short_lists_repeat_it():
    table = mined()
    rows = training_rows(table, QUERIES, DOCUMENTS)
    assert rows.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert rows["anchor"][:] == [QUERIES[query] for query in (0, 0, 1, 2, 3, 4, 5)]
    assert rows["positive"][:] == [DOCUMENTS[document] for document in (0, 1, 2, 3, 4, 5, 6)]
    lists = {query: [] for query in range(6)}
    for query, document in zip(*(table.table[name].to_pylist() for name in ("query_id", "doc_id")), strict=True):
        lists[query].append(DOCUMENTS[document])
    assert {len(found) for found in lists.values()} == {1, 3}  # ragged indeed
    for query, row in zip((0, 0, 1, 2, 3, 4, 5), rows, strict=True):
        found = [row[f"negative_{slot}"] for slot in (1, 2, 3)]
        short = 3 - len(lists[query])
        assert found == lists[query] + [row["positive"]] * short


def test_the_first_of_each_list_and_ids_without_texts():
    assert training_rows(mined(), QUERIES, DOCUMENTS, num_negatives=1).column_names[2:] == ["negative_1"]
    assert training_rows(mined(), num_negatives=0)[0] == {"anchor": 0, "positive": 0}


def test_the_trainer_trains_on_it(tmp_path, student):
    rows = training_rows(mined(), QUERIES, DOCUMENTS)
    loss = ChainLoss(student)
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=7, save_strategy="no", report_to="none", use_cpu=True
    )
    before = [weight.clone() for weight in student.parameters()]
    SentenceTransformerTrainer(student, arguments, train_dataset=rows, loss=loss).train()
    assert loss.steps == 2
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    real = sum(len(set(row.values())) - 2 for row in rows)
    assert loss.pools[0].negatives[1].items.embeddings.shape[0] == real < 7 * 3


def test_labelled_pairs_of_the_table_train_too(tmp_path, student):
    rows = mined().to_hf("labeled-pair", queries=QUERIES, corpus=DOCUMENTS)
    assert isinstance(rows, Dataset)
    loss = ChainLoss(student, labels="relevance")
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=99, save_strategy="no", report_to="none", use_cpu=True
    )
    SentenceTransformerTrainer(student, arguments, train_dataset=rows, loss=loss).train()
    pool = loss.pools[0]
    assert int(pool.positives.usable.sum()) == 7
    assert len(pool) == len(rows)
