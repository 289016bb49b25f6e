"""Pairs of views: who is trained on, what a batch holds, and what moves together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import GeoData
from datamodules.geo import moved_together, places_of
from datamodules.geo_files import CVUSA, VIGOR, University1652
from miners import GeoTable, MinedOnRefresh, NeighbourBatches, Store
from tests.geo import write_cvusa, write_university, write_vigor


def read(folder: Path, **options: object) -> GeoData:
    fixed = {"train": CVUSA(str(folder)), "val": CVUSA(str(folder), "val"), "size": (16, 32), "reference_size": 16}
    data = GeoData(**{**fixed, "batch_size": 4, **options})
    data.setup("fit")
    return data


def test_a_batch_of_neighbours(tmp_path: Path) -> None:
    tables = NeighbourBatches([GeoTable()], 4, 4)
    data = read(write_cvusa(tmp_path), batch_miner=tables, flip=False)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs["query"].shape == (4, 3, 16, 32)
    assert batch.inputs["document"].shape == (4, 3, 16, 16)
    assert batch.inputs["query"].dtype == torch.uint8
    assert torch.equal(batch.items["query"].ids, batch.items["document"].ids)
    assert len(batch.items["document"].content.unique()) == 4
    assert batch.known.to_lists() == [[i] for i in batch.items["query"].ids.tolist()]
    rows = batch.rows.sort().values
    assert int(rows[-1] - rows[0]) <= 4  # a street
    assert torch.equal(batch.inputs["document"][0], data.picture(int(batch.items["document"].ids[0]), "document"))


def test_splits_have_ids_of_their_own(tmp_path: Path) -> None:
    data = read(write_cvusa(tmp_path))
    val = data.split("val")
    assert val.queries.tolist() == list(range(12, 18))
    assert val.positives.to_lists() == [[i] for i in range(12, 18)]
    assert data.names("query")[12] == "val/streetview/panos/0000013.jpg"
    assert data.qrels("val")["val/streetview/panos/0000013.jpg"] == {"val/bingmap/19/0000013.jpg": 1}
    assert data.everything("document")[0].tolist() == list(range(12))
    assert data.view(torch.tensor([1, 14]), "query")[:].shape == (2, 3, 16, 32)
    assert torch.equal(data.depict(14, "document"), data.picture(14, "document"))
    (loaded,) = data.val_dataloader()
    assert loaded.items["query"].ids.tolist() == val.queries.tolist()
    queries, references = places_of(val)
    assert float(queries.distances(torch.arange(6), references, torch.arange(6)).max()) == 0
    assert [sum(len(batch) for batch in loader) for loader in data.predict_dataloader()] == [18, 18]


def test_a_stage_reads_what_it_wants(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path)
    data = GeoData(CVUSA("nowhere"), CVUSA(str(folder), "val"), CVUSA(str(folder)), size=16)
    data.setup("test")
    assert data.split("test").queries.tolist() == list(range(12))
    assert len(data.names("query")) == 12
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        data.setup("fit")


def test_places_are_those_of_training_whatever_was_read_before(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path)
    data = GeoData(CVUSA(str(folder)), CVUSA(str(folder), "val"), size=16, batch_size=4)
    data.setup("validate")
    data.setup("fit")
    ids, split = data.table.positives.values, data.split("train")
    assert ids.tolist() == list(range(6, 18))
    assert torch.equal(data.table.document_places.coordinates[ids], split.pairs.reference_places.coordinates)
    assert torch.equal(data.picture(6, "query"), split.pairs.queries.picture(0, 3, (16, 16)))


def test_semi_positives_are_known(tmp_path: Path) -> None:
    data = read(write_vigor(tmp_path), train=VIGOR(str(tmp_path)), val=None)
    batch = next(iter(data.train_dataloader()))
    split = data.split("train")
    for row, known in zip(batch.rows.tolist(), batch.known.to_lists(), strict=True):
        assert set(known) == {*split.positives.to_lists()[row], *split.semi_positives.to_lists()[row]}
    assert any(len(known) > 1 for known in batch.known.to_lists())
    assert data.table.positives.lengths.unique().tolist() == [1]  # and none is drawn as the positive


def test_never_a_building_twice(tmp_path: Path) -> None:
    folder = write_university(tmp_path, train=8)
    data = read(folder, train=University1652(str(folder)), val=None, size=16, batch_miner=NeighbourBatches([]))
    for batch in data.train_dataloader():
        assert len(batch.items["document"].ids.unique()) == len(batch)


def test_drawn_references_travel_along(tmp_path: Path) -> None:
    data = read(write_cvusa(tmp_path), sources=[MinedOnRefresh(2, search_depth=6, first_rank=0)], val=None)
    vectors = torch.nn.functional.normalize(torch.randn(12, 4), dim=1)
    data.batches.sources[0].refresh({"query": Store(vectors, space="query"), "document": Store(vectors)})
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs["drawn"].shape == (8, 3, 16, 16)
    assert batch.items["drawn"].rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(
        row not in drawn for row, drawn in zip(batch.rows.tolist(), batch.items["drawn"].ids.view(4, 2).tolist())
    )


def test_pairs_move_together() -> None:
    queries = torch.arange(2 * 8).view(1, 1, 2, 8).repeat(5, 1, 1, 1)
    references = torch.arange(16).view(1, 1, 4, 4).repeat(5, 1, 1, 1)
    numbers = torch.tensor([[0.4, 0.9], [0.6, 0.1], [0.6, 0.3], [0.6, 0.7], [0.6, 0.8]])
    seen, tiles = moved_together(queries, references, numbers, True, "panorama")
    assert torch.equal(seen[0], queries[0].flip(-1))
    assert torch.equal(tiles[0], references[0].flip(-1))
    for row, r in ((1, 1), (2, 2), (3, 3)):
        assert torch.equal(seen[row], queries[row].roll(-2 * r, 2))
        assert torch.equal(tiles[row], references[row].rot90(r, (1, 2)))
    assert torch.equal(seen[4], queries[4])
    both, _ = moved_together(references, references, numbers, False, "both")
    assert torch.equal(both[1], references[1].rot90(1, (1, 2)))
    with pytest.raises(ValueError, match="a query of 2 x 8 pixels cannot be turned"):
        moved_together(queries, references, numbers, False, "both")


def test_moves_are_those_of_seed_epoch_and_row(tmp_path: Path) -> None:
    pictures = []
    for workers in (0, 1):
        data = read(write_cvusa(tmp_path), turn="panorama", num_workers=workers)
        pictures.append([batch.inputs["query"] for batch in data.train_dataloader()])
    assert all(torch.equal(one, other) for one, other in zip(*pictures, strict=True))


def test_mistakes(tmp_path: Path) -> None:
    folder = write_cvusa(tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'test'. Set data.init_args.test"):
        read(folder).split("test")
    with pytest.raises(ValueError, match="12 training pairs are fewer than a batch"):
        read(folder, batch_size=32, drop_last=True)
    with pytest.raises(ValueError, match="sides of 1 pixel at least"):
        GeoData(size=0)
    with pytest.raises(ValueError, match="turn='up'"):
        GeoData(turn="up")
    for options in ({"turn": "both", "reference_size": 384}, {"turn": "panorama"}):
        with pytest.raises(ValueError, match=r"size=\[140, 768\]\): what is turned by a quarter is a square"):
            GeoData(size=(140, 768), **options)
