from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules import RetrievalData
from datamodules.batch import Batch
from datamodules.texts import content_hash
from miners.base import BatchMiner, Draw, NegativeSource, Shuffled
from miners.draws import RowGenerator
from tests.conftest import write_beir


class OneMore(NegativeSource):
    """Draws the next document, and for every second row one after that."""

    def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
        ids = torch.stack([positives + 1, positives + 2], dim=1) % 12
        return Draw(ids, torch.stack([rows >= 0, rows % 2 == 0], dim=1), "one_more")


class Backwards(BatchMiner):
    def arrange(self, rows: Tensor, epoch: int) -> Tensor:
        return rows.flip(0)


class Recorder(pl.LightningModule):
    """Learns nothing; remembers which rows it saw with which positives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], list[int]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.rows.tolist(), batch.items["document"].ids.tolist()))
        return self.weight * 0

    def on_after_backward(self) -> None:
        self.trainer.datamodule.batch_miner.batch_trained()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


def ready(folder: Path, **options: Any) -> RetrievalData:
    data = RetrievalData(str(folder), **{"batch_size": 4, **options})
    data.setup("fit")
    return data


def test_a_row_per_query_with_a_positive(sample_folder: Path) -> None:
    table = ready(sample_folder).table
    assert [table.anchor_names[at] for at in table.anchors.tolist()] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert table.anchor_content[4] == table.anchor_content[5] == content_hash("where lives the bee?")
    assert table.document_content[1] == table.document_content[7] != table.document_content[0]
    assert table.document_names[11] == "d11"


def test_known_are_all_positives_of_the_text_and_their_equals(sample_folder: Path) -> None:
    # q0 has two positives, d7 says what d1 says, q4 and q5 ask the same; d11 was judged irrelevant
    assert ready(sample_folder).table.positives.to_lists() == [[0, 6], [1, 7], [2], [3], [4, 5], [4, 5]]
    assert ready(sample_folder, min_score=2, val_split=None).table.positives.to_lists()[0] == [0]


def test_known_agrees_with_a_slow_obvious_form(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "random")
    draw = torch.Generator().manual_seed(1)
    queries = [f"query {n}" for n in torch.randint(15, (40,), generator=draw).tolist()]
    documents = [f"document {n}" for n in torch.randint(20, (50,), generator=draw).tolist()]
    pairs = {(int(q), int(d)) for q, d in zip(*torch.randint(40, (2, 60), generator=draw), strict=True)}
    for stem, texts in (("queries", queries), ("corpus", documents)):
        lines = [json.dumps({"_id": str(at), "text": text}) for at, text in enumerate(texts)]
        (folder / f"{stem}.jsonl").write_text("\n".join(lines))
    lines = [f"{query}\t{document}\t1" for query, document in pairs]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    table = ready(folder, val_split=None).table
    for anchor, known in zip(table.anchors.tolist(), table.positives.to_lists(), strict=True):
        texts = {documents[d] for q, d in pairs if queries[q] == queries[anchor]}
        assert known == [at for at, text in enumerate(documents) if text in texts]
    assert table.anchors.tolist() == sorted({query for query, _ in pairs})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_say_who_is_who(sample_folder: Path, num_workers: int) -> None:
    data = ready(sample_folder, sources=[OneMore()], num_workers=num_workers, batch_miner=Backwards())
    first, second = data.train_dataloader()
    assert first.rows.tolist() == [5, 4, 3, 2]
    assert len(second) == 2
    assert first.inputs["query"][0] == "WHERE lives  the bee?"
    for side, space in (("query", "query"), ("document", "document"), ("drawn", "document")):
        items = first.items[side]
        assert items.space == space
        assert first.inputs[side] == data.text_of(items.ids, space)
        assert items.content.tolist() == [content_hash(text) for text in first.inputs[side]]
    positives = first.items["document"].ids
    assert first.items["drawn"].rows.tolist() == [0, 1, 1, 2, 3, 3]  # place in the batch, not row of the set
    assert first.items["drawn"].ids.tolist() == [
        int(positives[at]) + step for at, steps in enumerate([(1,), (1, 2), (1,), (1, 2)]) for step in steps
    ]
    assert first.known.to_lists() == [[4, 5], [4, 5], [3], [2]]


def test_a_batch_without_drawn_negatives_still_has_the_side(sample_folder: Path) -> None:
    class Nothing(NegativeSource):
        def draw(self, rows: Tensor, positives: Tensor, epoch: int, generator: RowGenerator) -> Draw:
            return Draw(torch.full((len(rows), 1), -1), torch.zeros(len(rows), 1, dtype=torch.bool), "nothing")

    for batch in ready(sample_folder, sources=[Nothing()]).train_dataloader():
        assert batch.inputs["drawn"] == []
        assert len(batch.items["drawn"].ids) == 0
    assert all("drawn" not in batch.inputs for batch in ready(sample_folder).train_dataloader())


def epochs(data: RetrievalData, count: int) -> list[list[tuple[int, int]]]:
    """(row, positive) of each epoch, in order."""
    seen = []
    for epoch in range(count):
        data.batches.set_epoch(epoch)
        seen.append(
            [
                pair
                for batch in data.train_dataloader()
                for pair in zip(batch.rows.tolist(), batch.items["document"].ids.tolist(), strict=True)
            ]
        )
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_epoch_has_every_row_once_with_a_known_positive(sample_folder: Path, num_workers: int) -> None:
    data = ready(sample_folder, num_workers=num_workers)
    known = data.table.positives.to_lists()
    orders = epochs(data, 3)
    for order in orders:
        assert sorted(row for row, _ in order) == list(range(6))
        assert all(positive in known[row] for row, positive in order)
    assert orders[0] != orders[1]


def test_positives_are_drawn_uniformly(sample_folder: Path) -> None:
    of_q0 = Counter(dict(order)[0] for order in epochs(ready(sample_folder), 200))
    assert set(of_q0) == {0, 6}
    assert 70 <= of_q0[0] <= 130  # 100 +- 4 standard deviations


def test_a_seed_repeats_whatever_makes_the_batches(sample_folder: Path) -> None:
    first = epochs(ready(sample_folder, seed=3), 2)
    assert epochs(ready(sample_folder, seed=3, num_workers=2), 2) == first
    assert epochs(ready(sample_folder, seed=4), 2) != first


def test_drop_last(sample_folder: Path) -> None:
    assert [len(batch) for batch in ready(sample_folder, drop_last=True).train_dataloader()] == [4]


def test_evaluation_sees_queries_with_a_positive_and_all_grades(sample_folder: Path) -> None:
    data = RetrievalData(str(sample_folder), min_score=2)
    data.setup("test")
    ids, texts = data.queries("test")
    assert (ids.tolist(), list(texts)) == ([8], ["where lives the fox?"])
    assert data.qrels("test") == {"q8": {"d8": 2, "d9": 1}}
    all_grades = ready(sample_folder).qrels("test")
    assert all_grades == {"q8": {"d8": 2, "d9": 1}, "q9": {"d9": 1, "d0": 0}}
    ids, texts = data.corpus()
    assert ids.tolist() == list(range(12))
    assert texts[:2] == ["cat the cat number 0 of the zoo", "dog the dog number 1 of the zoo"]
    assert (data.names("document")[3], data.names("query")[3]) == ("d3", "q3")
    with pytest.raises(ValueError, match="has the spaces 'query' and 'document', not 'image'"):
        data.names("image")


def test_everything_that_training_meets(sample_folder: Path) -> None:
    data = ready(sample_folder)
    ids, texts = data.everything("query")
    assert ids.tolist() == data.table.anchors.tolist()
    assert list(texts) == data.text_of(ids, "query")
    assert len(data.everything("document")[1]) == 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_loaders(sample_folder: Path, num_workers: int) -> None:
    data = ready(sample_folder, eval_batch_size=5, num_workers=num_workers)
    data.setup("test")
    (val,), (test,) = list(data.val_dataloader()), list(data.test_dataloader())
    assert (val.items["query"].ids.tolist(), test.items["query"].ids.tolist()) == ([6, 7], [8, 9])
    assert list(val.inputs) == ["query"]
    queries, corpus = (list(loader) for loader in data.predict_dataloader())
    assert [len(batch) for batch in queries] == [5, 5]
    assert [len(batch) for batch in corpus] == [5, 5, 2]
    assert corpus[2].inputs["document"] == data.text_of([10, 11], "document")
    assert RetrievalData(str(sample_folder), val_split=None).val_dataloader() == []


def test_no_training_rows(sample_folder: Path, edit_lines: Callable) -> None:
    edit_lines(sample_folder / "qrels" / "train.tsv", lambda lines: [lines[0], "q0\td0\t0"])
    with pytest.raises(ValueError, match=r"no query of the split 'train' has a positive; nothing to train on"):
        ready(sample_folder)


def test_mistakes_in_the_validation_split_end_the_run_before_training(
    sample_folder: Path, edit_lines: Callable
) -> None:
    edit_lines(sample_folder / "qrels" / "dev.tsv", lambda lines: [lines[0], "q0\td0\t0"])
    with pytest.raises(ValueError, match=r"no query of the split 'dev' has a positive; there is nothing to evaluate"):
        ready(sample_folder)
    (sample_folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"splits that are there: test, train.*or val_split and test_split to null"
    ):
        ready(sample_folder)
    assert ready(sample_folder, val_split=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"RetrievalData\(batch_size=0\): wants at least 1"),
        ({"eval_batch_size": 0}, r"RetrievalData\(eval_batch_size=0\): wants at least 1"),
        ({"num_workers": -1}, r"RetrievalData\(num_workers=-1\): wants at least 0"),
        ({"min_score": 0}, r"RetrievalData\(min_score=0\): a grade of 0 means not relevant"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalData("x", **options)


def test_a_misspelt_argument() -> None:
    with pytest.raises(TypeError, match="bach_size"):
        RetrievalData("x", bach_size=3)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RetrievalData, "data")
    with pytest.raises(Exception, match="bach_size"):
        parser.parse_object({"data": {"class_path": "datamodules.RetrievalData", "init_args": {"bach_size": 3}}})


def test_parts_are_named_by_class_path_in_yaml(sample_folder: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(RetrievalData, "data")
    chosen = {
        "folder": str(sample_folder),
        "batch_size": 3,
        "batch_miner": {"class_path": f"{__name__}.Backwards"},
        "sources": [{"class_path": f"{__name__}.OneMore"}],
    }
    config = parser.parse_object({"data": {"class_path": "datamodules.RetrievalData", "init_args": chosen}})
    data = parser.instantiate(config).data
    assert (type(data.batch_miner), data.batch_miner.batch_size, len(data.sources)) == (Backwards, 3, 1)


def test_the_help_explains_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RetrievalData, "data")
    parser.print_help()
    text = " ".join(capsys.readouterr().out.split())
    for words in ("qrels file to train on", "training rows of one process' batch", "which negatives travel with a row"):
        assert words in text


def test_the_batch_miner_takes_settings_over(sample_folder: Path) -> None:
    data = ready(sample_folder, batch_size=5, seed=7, drop_last=True, batch_miner=Backwards())
    assert (data.batch_miner.batch_size, data.batch_miner.seed, data.batch_miner.drop_last) == (5, 7, True)
    assert RetrievalData("x", batch_size=5, batch_miner=Shuffled(batch_size=5)).batch_miner.batch_size == 5
    with pytest.raises(
        ValueError, match=r"Backwards\(batch_size=3\) meets .* batch_size=5\. Set data\.init_args\.batch_size"
    ):
        RetrievalData("x", batch_size=5, batch_miner=Backwards(batch_size=3))


def test_a_source_of_another_space() -> None:
    source = OneMore()
    source.space = "image"
    with pytest.raises(ValueError, match="OneMore draws from the space 'image', but the negatives of RetrievalData"):
        RetrievalData("x", sources=[source])


def test_training_before_setup() -> None:
    with pytest.raises(RuntimeError, match=r"call setup\('fit'\) first"):
        RetrievalData("x").train_dataloader()


# Lightning


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_moves_the_epoch_on(sample_folder: Path, tmp_path: Path, num_workers: int) -> None:
    module = Recorder()
    data = RetrievalData(str(sample_folder), batch_size=4, num_workers=num_workers)
    trainer(tmp_path, max_epochs=3).fit(module, datamodule=data)
    expected = epochs(ready(sample_folder), 3)
    for epoch in range(3):
        seen = [pair for at, *pairs in module.seen if at == epoch for pair in zip(*pairs, strict=True)]
        assert seen == expected[epoch]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_resumed_run_sees_the_very_next_batch(
    sample_folder: Path, tmp_path: Path, num_workers: int, step: int
) -> None:
    """Three batches an epoch: the checkpoint lies inside the first, between it and the second, or inside that."""

    def data() -> RetrievalData:
        return RetrievalData(str(sample_folder), batch_size=2, num_workers=num_workers)

    whole, rest = Recorder(), Recorder()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, max_epochs=4, callbacks=[keep], enable_checkpointing=True).fit(whole, datamodule=data())
    trainer(tmp_path, max_epochs=4).fit(rest, datamodule=data(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert rest.seen == whole.seen[step:]


def test_two_processes_must_not_be_shared_twice(sample_folder: Path, tmp_path: Path) -> None:
    data = ready(sample_folder)
    data.trainer = trainer(tmp_path, devices=2, strategy="ddp")
    with pytest.raises(ValueError, match=r"between the 2 processes itself.*Set trainer\.use_distributed_sampler=false"):
        data.train_dataloader()
    data.trainer = trainer(tmp_path, devices=2, strategy="ddp", use_distributed_sampler=False)
    assert data.train_dataloader().batch_sampler is data.batches


def test_one_process_needs_no_option(sample_folder: Path, tmp_path: Path) -> None:
    data = ready(sample_folder)
    data.trainer = trainer(tmp_path, use_distributed_sampler=True)
    assert data.train_dataloader().batch_sampler is data.batches


def test_a_limited_corpus_keeps_the_judged_and_a_fixed_fill(
    sample_folder: Path, edit_lines: Callable[..., None]
) -> None:
    """Eleven of twelve documents are judged; thirty strangers make a choice."""
    strangers = [json.dumps({"_id": f"s{i}", "text": f"stranger {i}"}) for i in range(30)]
    edit_lines(sample_folder / "corpus.jsonl", lambda lines: [*lines, *strangers])

    def kept(size: int | None) -> set[str]:
        data = RetrievalData(str(sample_folder), max_documents=size)
        data.setup("fit")
        return set(data.names("document"))

    judged = {f"d{i}" for i in range(12)} - {"d10"}
    ten, twenty = kept(21), kept(31)
    assert judged < ten < twenty < kept(None)
    assert (len(ten), len(twenty)) == (21, 31)
    edit_lines(sample_folder / "corpus.jsonl", lambda lines: lines[::-1])
    assert kept(21) == ten  # whatever the order of the lines
    with pytest.raises(ValueError, match=r"judge 11 documents.*max_documents to at least 11"):
        kept(10)
    with pytest.raises(ValueError, match="max_documents=0"):
        RetrievalData(str(sample_folder), max_documents=0)


def test_fewer_training_queries_let_go_of_what_only_the_others_judge(
    sample_folder: Path, edit_lines: Callable[..., None]
) -> None:
    def read(**cut: int | None) -> RetrievalData:
        data = RetrievalData(str(sample_folder), **cut)
        data.setup("fit")
        data.setup("test")
        return data

    def trained_on(data: RetrievalData) -> set[str]:
        return {data.names("query")[row] for row in data.table.anchors.tolist()}

    def judged_by(data: RetrievalData, split: str) -> set[tuple[str, str]]:
        of = data.judgements(split)
        pairs = zip(of.queries.tolist(), of.documents.tolist(), strict=True)
        return {(data.names("query")[query], data.names("document")[document]) for query, document in pairs}

    whole, two = read(), read(max_queries=2)
    chosen = trained_on(two)
    assert len(chosen) == 2
    assert chosen < trained_on(read(max_queries=3)) < trained_on(whole)
    assert judged_by(two, "train") == {pair for pair in judged_by(whole, "train") if pair[0] in chosen}
    for split in ("dev", "test"):
        assert judged_by(two, split) == judged_by(whole, split)
    assert set(read(max_queries=100).names("document")) == set(whole.names("document"))

    needed = {document for split in ("train", "dev", "test") for _, document in judged_by(two, split)}
    assert len(needed) < 11
    small = read(max_queries=2, max_documents=len(needed))
    assert set(small.names("document")) == needed
    assert trained_on(small) == chosen
    assert judged_by(small, "dev") == judged_by(whole, "dev")
    with pytest.raises(ValueError, match=rf"at least {len(needed)}, or train on fewer queries .*max_queries"):
        read(max_queries=2, max_documents=len(needed) - 1)
    with pytest.raises(ValueError, match="max_queries=0"):
        RetrievalData(str(sample_folder), max_queries=0)
    edit_lines(sample_folder / "qrels" / "train.tsv", lambda lines: [lines[0], *lines[:0:-1]])
    assert trained_on(read(max_queries=2)) == chosen  # whatever the order of the lines
