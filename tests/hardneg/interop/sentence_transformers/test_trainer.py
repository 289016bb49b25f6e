"""Batch miners inside SentenceTransformerTrainer: its loader's order is ours, refreshed and resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from hardneg.interop.sentence_transformers import ChainLoss, MinerBatches, MinerBatchSampler, RefreshNegatives
from hardneg.interop.sentence_transformers.content import content_of
from hardneg.losses import InfoNCE
from miners import GIST, NGAME, InBatch, MemoryQueue, NoDuplicates, Ragged, Shuffled, Store, TrainingTable
from tests.hardneg.interop.conftest import texts

ROWS = 24


def data(rows: int = ROWS, seed: int = 7) -> Dataset:
    every = texts(2 * rows, seed)
    return Dataset.from_dict({"anchor": every[:rows], "positive": every[rows:]})


class Recorder(ChainLoss):
    """Writes down which anchors each training step saw."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[list[int]] = []

    def forward(self, sentence_features: Any, labels: Any = None) -> torch.Tensor:
        features = list(sentence_features)
        if self.model.training:
            self.seen.append(content_of(features[0]).tolist())
        return super().forward(features, labels)

    def rows(self, dataset: Dataset, prompt: str = "") -> list[list[int]]:
        """The steps as rows of ``dataset``."""
        known = content_of(self.model.preprocess([prompt + text for text in dataset["anchor"]])).tolist()
        return [[known.index(one) for one in step if one in known] for step in self.seen]


def trainer_of(
    tmp_path: Path,
    model: SentenceTransformer,
    loss: Any,
    train: Any,
    batches: Any,
    callbacks: Any = (),
    **settings: Any,
) -> SentenceTransformerTrainer:
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    args = SentenceTransformerTrainingArguments(str(tmp_path), batch_sampler=batches, **arguments)
    return SentenceTransformerTrainer(model, args, train_dataset=train, loss=loss, callbacks=list(callbacks))


def planned(model: SentenceTransformer, dataset: Dataset, epoch: int, seed: int, prompt: str = "") -> list[list[int]]:
    """What NGAME plans for an epoch with the model's embeddings as they are."""
    ids = torch.arange(len(dataset))
    miner = NGAME(cluster_size=4, batch_size=4, seed=seed)
    miner.attach(TrainingTable(ids, Ragged(torch.arange(len(ids) + 1), ids)))
    vectors = model.encode([prompt + text for text in dataset["anchor"]], convert_to_tensor=True)
    miner.refresh({"query": Store(vectors, space="query")})
    miner.set_epoch(epoch)
    return list(miner)


def not_given(batches: MinerBatches) -> MinerBatches:
    """Batches whose callback no trainer knows."""
    RefreshNegatives(batches)
    return batches


def test_batches_are_those_that_ngame_planned(tmp_path, student, student_folder):
    dataset, loss = data(), Recorder(student)
    batches = MinerBatches(NGAME(cluster_size=4))
    refresh = RefreshNegatives(batches, batch_size=5)
    trainer = trainer_of(tmp_path, student, loss, dataset, batches, [refresh], num_train_epochs=1, seed=3)
    trainer.train()
    first = loss.rows(dataset)
    assert first == planned(SentenceTransformer(str(student_folder), device="cpu"), dataset, 0, 3)
    assert sorted(row for step in first for row in step) == list(range(ROWS))
    assert refresh.refreshes == 1
    assert student.training  # as the trainer left it


def test_every_epoch_is_refreshed_with_the_live_model(tmp_path, student):
    dataset, loss = data(), Recorder(student)
    batches = MinerBatches(NGAME(cluster_size=4))
    refresh = RefreshNegatives(batches)
    trainer = trainer_of(tmp_path, student, loss, dataset, batches, [refresh], max_steps=6, num_train_epochs=1)
    trainer.train()
    plan = planned(student.eval(), dataset, 1, 42)
    more = trainer_of(
        tmp_path, student, loss, dataset, batches, [refresh], num_train_epochs=2, learning_rate=0.0
    )  # the weights stay as they are: epoch 1 has the clusters of these
    loss.seen.clear()
    more.train()
    assert len(loss.seen) == 12
    assert loss.rows(dataset)[6:] == plan
    assert refresh.refreshes == 1 + 2


def test_a_refresh_by_steps_arranges_what_is_left(tmp_path, student):
    dataset, loss = data(), Recorder(student)
    batches = MinerBatches(NGAME(cluster_size=4))
    refresh = RefreshNegatives(batches, every_n_epochs=None, every_n_steps=2)
    trainer_of(tmp_path, student, loss, dataset, batches, [refresh], num_train_epochs=1, learning_rate=0.1).train()
    assert refresh.refreshes == 1 + 3
    assert sorted(row for step in loss.rows(dataset) for row in step) == list(range(ROWS))
    still = planned(SentenceTransformer(student.tokenizer.name_or_path, device="cpu"), dataset, 0, 42)
    assert loss.rows(dataset)[:3] == still[:3]
    assert loss.rows(dataset) != still


@pytest.mark.parametrize(
    ("folder", "clock", "stop"),
    [
        ("output_dir", {"every_n_steps": 4}, 8),  # in the middle of the second epoch
        ("resume_argument", {"every_n_epochs": 5}, 6),  # between epochs, of which the second has the first's embeddings
    ],
)
def test_a_resumed_run_is_the_unbroken_one(tmp_path, student_folder, guide, folder, clock, stop):
    dataset = data()

    def start(where: Path, **settings: Any) -> tuple[SentenceTransformerTrainer, Recorder]:
        model = SentenceTransformer(str(student_folder), device="cpu")
        loss = Recorder(model, [InBatch(), GIST(), MemoryQueue(8)], InfoNCE(learn_temperature=True), guide)
        batches = MinerBatches(NoDuplicates(NGAME(cluster_size=4)))
        refresh = RefreshNegatives(batches, **clock, loss=loss)
        return trainer_of(where, model, loss, dataset, batches, [refresh], **settings), loss

    unbroken, whole = start(tmp_path / "a", save_strategy="steps", save_steps=stop)
    unbroken.train()
    place = tmp_path / "a" if folder == "output_dir" else tmp_path / "b"
    again, rest = start(place, save_strategy="no")
    checkpoint = str(tmp_path / "a" / f"checkpoint-{stop}")
    if folder == "resume_argument":  # a checkpoint from elsewhere must be named there
        again.args.resume_from_checkpoint = checkpoint
    again.train(resume_from_checkpoint=checkpoint)
    assert rest.seen == whole.seen[stop:]
    assert rest.steps == whole.steps == 12
    for weight, expected in zip(again.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert torch.equal(rest.loss.logit_scale, whole.loss.logit_scale)


def test_a_checkpoint_of_somebody_else_resumes_with_new_batches(tmp_path, student, caplog):
    dataset, loss = data(), Recorder(student)
    trainer_of(tmp_path, student, loss, dataset, "batch_sampler", save_strategy="steps", save_steps=3).train()
    batches = MinerBatches(NGAME(cluster_size=4))
    trainer = trainer_of(tmp_path, student, loss, dataset, batches, [RefreshNegatives(batches)])
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert "is missing" in caplog.text
    assert len(loss.seen) == 12 + 3


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"batches": [{}, {}], "losses": {}}, "saved with 2 data sets, and this training has 0"),
        ({"batches": [], "losses": {}}, "saved without the chain"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, student, saved, message):
    (tmp_path / "checkpoint-5").mkdir()
    torch.save(saved, tmp_path / "checkpoint-5" / "hardneg.pt")
    arguments = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=None)
    refresh = RefreshNegatives(MinerBatches(NGAME()), loss=ChainLoss(student))
    with pytest.raises(ValueError, match=message):
        refresh._resume(arguments, SimpleNamespace(global_step=5))


def test_several_data_sets_with_their_losses_and_prompts(tmp_path, student, student_folder):
    train = DatasetDict({"one": data(16, seed=1), "two": data(8, seed=2)})
    losses = {"one": Recorder(student), "two": Recorder(student, loss=InfoNCE(0.1))}
    batches = MinerBatches(NGAME(cluster_size=4))
    prompts = {"one": {"anchor": "ba : "}, "two": {"anchor": "be : ", "positive": "bi : "}}
    refresh = RefreshNegatives(batches)
    trainer = trainer_of(tmp_path, student, losses, train, batches, [refresh], num_train_epochs=1, prompts=prompts)
    trainer.train()
    fresh = SentenceTransformer(str(student_folder), device="cpu")
    for name, prompt in (("one", "ba : "), ("two", "be : ")):
        assert losses[name].rows(train[name], prompt) == planned(fresh, train[name], 0, 42, prompt)
    assert len(losses["one"].seen) == 4
    assert len(losses["two"].seen) == 2


def test_evaluation_keeps_the_order_of_its_data_set(tmp_path, student):
    batches = MinerBatches(NGAME(cluster_size=4))
    trainer = trainer_of(tmp_path, student, ChainLoss(student), data(), batches, [RefreshNegatives(batches)])
    trainer.eval_dataset = data(10)
    before = trainer.evaluate()["eval_loss"]  # also before training, without any embeddings
    sampler = trainer.get_eval_dataloader().batch_sampler
    assert isinstance(sampler, MinerBatchSampler)
    assert list(sampler) == [list(range(8)), [8, 9]]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != before


def test_no_duplicates_needs_no_callback_and_works_with_their_losses(tmp_path, student):
    dataset = data(8)
    doubled = Dataset.from_dict({"anchor": [*dataset["anchor"], *dataset["anchor"]], "positive": texts(16, 5)})
    batches = MinerBatches(NoDuplicates(Shuffled()))
    trainer = trainer_of(tmp_path, student, MultipleNegativesRankingLoss(student), doubled, batches)
    trainer.train()
    (sampler,) = [trainer.get_train_dataloader().batch_sampler]
    for rows in sampler:
        assert len({doubled["anchor"][row] for row in rows}) == len(rows)
    assert len(list(sampler)) == len(sampler) == 4


def test_the_table_of_a_data_set():
    dataset = Dataset.from_dict(
        {"q": ["a", "b", "a"], "d": ["x", "x", "y"], "negative": ["n", "n", "n"], "label": [3, 4, 3]}
    )
    sampler = MinerBatchSampler(dataset, 2, False, ["label"], miner=Shuffled())
    assert sampler.columns == ["q", "d", "negative"]
    assert sampler.attach().tolist() == [0, 1]
    table = sampler.miner.table
    assert table.anchors.tolist() == [0, 1, 0]
    assert table.positives.to_lists() == [[0, 1], [0], [0, 1]]
    assert table.labels.tolist() == [3, 4, 3]
    chosen = MinerBatchSampler(dataset.select([2, 1]), 2, False, ["label"], miner=Shuffled())
    chosen.attach()
    assert chosen.miner.table.positives.to_lists() == [[0], [1]]


def test_things_that_are_no_text_are_each_their_own():
    dataset = Dataset.from_dict({"signal": [[1.0], [1.0]], "other": [[2.0], [2.0]]})
    sampler = MinerBatchSampler(dataset, 2, False, miner=Shuffled())
    assert sampler.attach().tolist() == [0, 1]
    assert sampler.miner.table.positives.to_lists() == [[0], [1]]


def test_processes_get_the_slices_of_a_global_batch(monkeypatch):
    from accelerate.data_loader import BatchSamplerShard

    dataset, alone = data(), MinerBatchSampler(data(), 8, False, seed=1, miner=Shuffled())
    expected = list(alone)
    for module in ("miners.base", "hardneg.interop.sentence_transformers.batches"):
        monkeypatch.setattr(f"{module}.process_count", lambda: 2)
    sampler = MinerBatchSampler(dataset, 4, False, seed=1, miner=Shuffled())
    assert len(sampler) == 6
    shards = [list(BatchSamplerShard(sampler, 2, rank, even_batches=False)) for rank in range(2)]
    assert [left + right for left, right in zip(*shards, strict=True)] == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda _: MinerBatches(NoDuplicates(NGAME(embeddings="buffer"))), ValueError, "embeddings='fresh'"),
        (lambda _: RefreshNegatives(MinerBatches(NGAME()), every_n_epochs=None), ValueError, "never refresh"),
        (lambda _: RefreshNegatives(MinerBatches(NGAME()), every_n_steps=0), ValueError, "at least 1"),
        (lambda train: train("batch_sampler", [RefreshNegatives(MinerBatches(NGAME()))]), ValueError, "batch_sampler="),
        (lambda train: train(MinerBatches(NGAME()), []), RuntimeError, "Add the callback RefreshNegatives"),
        (lambda train: train(not_given(MinerBatches(NGAME())), []), RuntimeError, "Add the callback RefreshNegatives"),
    ],
)
def test_mistakes_say_what_to_do(tmp_path, student, make, error, message):
    def train(batches: Any, callbacks: Any) -> None:
        trainer_of(tmp_path, student, ChainLoss(student), data(), batches, callbacks).train()

    with pytest.raises(error, match=message):
        make(train)
