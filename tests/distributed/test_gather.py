"""One process with the whole batch, or several with a share each: the same loss, the same gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import hardneg.losses
import miners
from datamodules.batch import Batch
from hardneg.losses import InfoNCE, PoolLoss
from hardneg.modules import RetrievalModule
from hardneg.modules.gather import gather, joined
from miners import (
    ADORE,
    CET,
    GIST,
    UNPG,
    AdaFace,
    ArcFace,
    ClusterWeights,
    CosFace,
    Debiased,
    HardnessConcentration,
    InBatch,
    Items,
    LearnedWeights,
    MagFace,
    MemoryQueue,
    MoCHi,
    PerpendicularNegatives,
    PoolMiner,
    PositiveAware,
    Ragged,
    SelfBlocks,
    StaticBank,
)
from miners.base import process_count, process_rank
from miners.cet import SelectionTower
from miners.store import Store
from tests.distributed.processes import in_processes
from tests.distributed.tiny import TinyEncoder

CHAINS: Mapping[str, Callable[[], list[PoolMiner]]] = {
    "InBatch": lambda: [InBatch()],
    "InBatch(own)": lambda: [InBatch(drawn="own")],
    "InBatch(none)": lambda: [InBatch(drawn="none")],
    "SelfBlocks": lambda: [InBatch(), SelfBlocks()],
    "GIST": lambda: [InBatch(), SelfBlocks(), GIST(margin=0.1, margin_strategy="relative")],
    "PositiveAware": lambda: [InBatch(), PositiveAware()],
    "HardnessConcentration": lambda: [InBatch(), HardnessConcentration(beta=0.3)],
    "Debiased": lambda: [InBatch(), SelfBlocks(), Debiased(tau_plus=0.1)],
    "MemoryQueue": lambda: [InBatch(), MemoryQueue(size=9), GIST()],
    "CET": lambda: [InBatch(), CET(SelectionTower(dim=TinyEncoder().dim), temperature=2.0, origins=None)],
    "UNPG": lambda: [InBatch(), UNPG()],
    "MoCHi": lambda: [InBatch(), MoCHi(num_hard=4, num_pairs=0, num_with_anchor=2, warmup_epochs=0, min_hard=2)],
    "MoCHi(pairs)": lambda: [InBatch(), MoCHi(4, num_pairs=3, num_with_anchor=2, warmup_epochs=0, min_hard=2)],
    "CosFace": lambda: [InBatch(), CosFace()],
    "ArcFace": lambda: [InBatch(), ArcFace()],
    "MagFace": lambda: [InBatch(), MagFace()],
    "AdaFace": lambda: [InBatch(), AdaFace()],
    "ADORE": lambda: [ADORE(num_negatives=5)],
    "StaticBank": lambda: [StaticBank(chunk_size=7)],
    "StaticBank(drawn)": lambda: [StaticBank(num_negatives=6)],
    "PerpendicularNegatives": lambda: [InBatch(), SelfBlocks(), PerpendicularNegatives()],
    "ClusterWeights": lambda: [InBatch(), SelfBlocks(), clustered()],
    "LearnedWeights": lambda: [InBatch(), LearnedWeights(dim=TinyEncoder().dim, hidden=3)],
}
FROZEN = {"ADORE", "StaticBank", "StaticBank(drawn)"}  # chains over a corpus that stays
LOSSES: Mapping[str, Callable[[], PoolLoss]] = {
    name: getattr(hardneg.losses, name) for name in hardneg.losses.__all__ if name != "PoolLoss"
} | {"InfoNCE(learned)": lambda: InfoNCE(0.1, learn_temperature=True, label_smoothing=0.1)}
DIRECTIONS = (("query_to_document",), ("document_to_query",), ("query_to_document", "document_to_query"))
OPTIONS: Mapping[str, Mapping[str, Any]] = {"plain": {}, "chunks": {"chunk_size": 2}, "momentum": {"momentum": 0.5}}
ROWS, DOCUMENTS = 8, 30


def clustered() -> ClusterWeights:
    """Clusters of both spaces, as a refresh makes them."""
    miner = ClusterWeights((2, 4))
    dice = torch.Generator().manual_seed(7)
    miner.refresh({space: Store(torch.randn(100, 4, generator=dice), space=space) for space in ("query", "document")})
    return miner


def test_every_miner_and_loss_there_is_has_a_cell() -> None:
    named = {name.split("(")[0] for name in CHAINS}
    public = [one for name, one in vars(miners).items() if name in miners.__all__]
    pool_miners = {one.__name__ for one in public if inspect.isclass(one) and issubclass(one, PoolMiner)}
    assert pool_miners - {"PoolMiner"} == named
    assert set(hardneg.losses.__all__) - {"PoolLoss"} <= set(LOSSES)


def cells() -> list[tuple[str, str, tuple[str, ...], str]]:
    every = []
    for chain, loss, directions, option in product(CHAINS, LOSSES, DIRECTIONS, OPTIONS):
        if chain in FROZEN and (directions != DIRECTIONS[0] or option == "momentum"):
            continue  # a frozen corpus has no vectors of documents to train
        if chain == "MoCHi(pairs)" and not loss.startswith("InfoNCE"):
            continue  # a document mixed with its own copy ties with both, and rounding says which of them is hardest
        if option != "plain" and (loss != "InfoNCE" or len(directions) < 2) and chain not in FROZEN:
            continue  # how things are encoded and what is made of the vectors are independent
        every.append((chain, loss, directions, option))
    return every


def whole_batch(step: int) -> Batch:
    """Rows of uneven lots: some draw no negative, positives of one row are known to others, texts repeat."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.arange(ROWS) + ROWS * step
    documents = torch.randperm(DOCUMENTS, generator=generator)[:ROWS]
    documents[-1] = documents[0]  # the last process' row has the first one's positive
    number = torch.tensor([2, 0, 3, 1, 0, 0, 2, 0])
    drawn = torch.randint(DOCUMENTS, (int(number.sum()),), generator=generator)
    known = [[int(documents[row]), int(documents[(row + 3) % ROWS]), 40 + row] for row in range(ROWS)]
    items = {
        "query": Items(ids=rows, content=1000 + rows // 3, space="query"),
        "document": Items(ids=documents, content=2000 + documents // 2),
        "drawn": Items(ids=drawn, content=2000 + drawn // 2, rows=torch.arange(ROWS).repeat_interleave(number)),
    }
    inputs = {
        side: [
            f"{side[0] if side == 'query' else 'd'}{number} word{number % 5} word{number % 7}"
            for number in one.ids.tolist()
        ]
        for side, one in items.items()
    }
    return Batch(inputs, items, Ragged.from_lists(known), rows)


def share(batch: Batch) -> Batch:
    """What this process holds of a batch, as a batch miner shares it."""
    own = torch.tensor_split(torch.arange(len(batch)), process_count())[process_rank()]
    first, last = int(own[0]), int(own[-1]) + 1
    brought = batch.items["drawn"].rows
    places = dict.fromkeys(("query", "document"), own)
    places["drawn"] = ((brought >= first) & (brought < last)).nonzero()[:, 0]
    items = {side: batch.items[side].take(at) for side, at in places.items()}
    items["drawn"] = Items(ids=items["drawn"].ids, content=items["drawn"].content, rows=items["drawn"].rows - first)
    inputs = {side: [batch.inputs[side][i] for i in at.tolist()] for side, at in places.items()}
    return Batch(inputs, items, batch.known.select(own), batch.rows[own])


def module_of(chain: str, loss: str, directions: tuple[str, ...], option: str, dtype: torch.dtype) -> RetrievalModule:
    frozen = None
    if chain in FROZEN:
        vectors = torch.randn(DOCUMENTS + 20, 6, generator=torch.Generator().manual_seed(5))
        frozen = {"document": Store(torch.nn.functional.normalize(vectors, dim=1))}
    module = RetrievalModule(
        TinyEncoder(),
        LOSSES[loss](),
        CHAINS[chain](),
        directions=directions,
        guide=TinyEncoder(seed=1),
        frozen=frozen,
        **OPTIONS[option],
    ).to(dtype)
    generator = torch.Generator().manual_seed(6)
    for space, many in (("query", 100), ("document", DOCUMENTS)):
        module.guide_stores[space] = Store(torch.randn(many, 4, generator=generator), space=space)
    for miner in module.chains["query_to_document"] if frozen else ():
        miner.refresh(frozen)
    return module


def trained(cell: tuple[str, str, tuple[str, ...], str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss, gradients and logged numbers of the last of some steps, as DDP would make them."""
    module = module_of(*cell, dtype)
    module._warned = True  # half of these tiny batches are masked, and that is well
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, value.detach())
    module.log_dict = lambda values, **_: logged.update(values)
    parameters = {name: one for name, one in module.named_parameters() if one.requires_grad}
    steps = 3 if cell[0] == "MemoryQueue" else 2 if cell[3] == "momentum" else 1
    for step in range(steps):
        module.training_step(share(whole_batch(step)), step).backward()
        module.batches_trained += 1
        for pool in module.finished:
            for miner in module.chains[pool.direction]:
                miner.commit(pool)
        if step < steps - 1:  # move by the same step in every process, or rounding would be compared with rounding
            module.zero_grad()
            module._followed = -1
            with torch.no_grad():
                for one in parameters.values():
                    one += 0.1 * torch.sin(torch.arange(one.numel()) + step).view_as(one)
    flat = torch.cat(
        [(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in parameters.values()]
    )
    if process_count() > 1:
        dist.all_reduce(flat)
        flat /= process_count()
    gradients = flat.split([one.numel() for one in parameters.values()])
    return {f"gradient/{name}": one for name, one in zip(parameters, gradients, strict=True)} | logged


def all_trained() -> dict[str, dict[str, Tensor]]:
    return {f"{dtype} {cell}": trained(cell, dtype) for dtype in (torch.float64, torch.float32) for cell in cells()}


def distance(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Largest difference; relative to the largest number of its kind in float32."""
    assert set(expected) == set(found)
    gradients = [value for key, value in expected.items() if key.startswith("gradient/")]
    largest = max(float(value.abs().max()) for value in gradients)
    worst = 0.0
    for key, value in expected.items():
        scale = largest if key.startswith("gradient/") else max(float(value.abs().max()), 1e-3)
        worst = max(worst, float((value - found[key]).abs().max()) / (1.0 if "float64" in name else scale))
    return worst


def gathered() -> dict[str, Any]:
    """What a process sees of sides with every part there is."""
    rank = process_rank()
    many = rank + 1
    made = (torch.arange(many * 3, dtype=torch.float64).view(many, 3) + 100 * rank).requires_grad_()
    norms = (torch.arange(many, dtype=torch.float64) + rank).requires_grad_()
    side = Items(
        made, torch.arange(many) + 10 * rank, torch.arange(many) + 20 * rank, torch.arange(many) % 2,
        torch.ones(many, 2) * rank, norms, "image",
    )  # fmt: skip
    drawn = Items(torch.full((rank, 3), float(rank)), torch.full((rank,), rank), rows=torch.zeros(rank).long())
    known = Ragged.from_lists([[rank] * row for row in range(many)])
    batch = Batch({}, {}, known, torch.arange(many) + 1000 * rank)
    sides, everyone, own = gather({"one": side, "drawn": drawn}, batch)
    weight = torch.arange(len(sides["one"]), dtype=torch.float64) + 1 + rank
    ((sides["one"].embeddings.sum(1) * weight).sum() + (sides["one"].norms * weight).sum()).backward()
    parts = {f"{side}/{name}": part.detach() for side in sides for name, part in sides[side].tensors().items()}
    return {
        **parts, "known": everyone.known.to_lists(), "batch_rows": everyone.rows, "own": [own.start, own.stop],
        "gradient": made.grad, "norms_gradient": norms.grad,
    }  # fmt: skip


def mismatched() -> str:
    items = Items(torch.zeros(1, 2), torch.zeros(1).long(), labels=torch.zeros(1).long() if process_rank() else None)
    try:
        gather({"one": items}, Batch({}, {}, Ragged.empty(1), torch.zeros(1).long()))
    except ValueError as error:
        return str(error)
    return "no error"


def uneven() -> dict[str, Tensor]:
    rank = process_rank()
    return joined({"at": torch.full((2 * rank,), rank), "vectors": torch.full((2 * rank, 2), float(rank))})


def everything() -> dict[str, Any]:
    """All that the tests below look at: starting a process costs more than what it does here."""
    return {"gathered": gathered(), "mismatched": mismatched(), "uneven": uneven(), "trained": all_trained()}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    return all_trained()


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return in_processes(request.param, everything, tmp_path_factory.mktemp("processes"))


def test_processes_train_like_one(
    together: list[Any], alone: Mapping[str, Mapping[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    moved = 0
    for name, expected in alone.items():
        bound = 1e-9 if "float64" in name else 1e-5
        for found in together:
            assert distance(name, expected, found["trained"][name]) <= bound, name
        moved += any(bool(value.abs().max() > 0) for key, value in expected.items() if key.startswith("gradient/"))
    with capsys.disabled():
        print(
            f"\n{len(cells())} cells of chain x loss x direction x option in two dtypes on {len(together)} processes: "
            f"{len(alone)} equal one process, {moved} of them with a gradient"
        )
    assert moved == len(alone)


def test_every_part_travels_in_the_order_of_ranks(together: list[Any]) -> None:
    processes = len(together)
    of_rank = [(rank, row) for rank in range(processes) for row in range(rank + 1)]
    for rank, seen in enumerate(answer["gathered"] for answer in together):
        assert seen["one/ids"].tolist() == [10 * rank + row for rank, row in of_rank]
        assert seen["one/content"].tolist() == [20 * rank + row for rank, row in of_rank]
        assert seen["one/labels"].tolist() == [row % 2 for _, row in of_rank]
        assert seen["one/guide"][:, 0].tolist() == [rank for rank, _ in of_rank]
        assert seen["one/norms"].tolist() == [rank + row for rank, row in of_rank]
        assert seen["one/embeddings"][:, 0].tolist() == [100 * rank + 3 * row for rank, row in of_rank]
        drawn = [rank for rank in range(processes) for _ in range(rank)]  # the first process drew nothing
        assert seen["drawn/ids"].tolist() == drawn
        starts = [0, 1, 3, 6][: processes + 1]
        assert seen["drawn/rows"].tolist() == [starts[rank] for rank in drawn]  # rows of the global batch
        assert seen["known"] == [[rank] * row for rank, row in of_rank]
        assert seen["batch_rows"].tolist() == [1000 * rank + row for rank, row in of_rank]
        assert seen["own"] == starts[rank : rank + 2]
        weight = torch.arange(1, starts[-1] + 1, dtype=torch.float64)[slice(*seen["own"])]
        asked = processes * weight + sum(range(processes))  # what all processes together ask of each vector
        assert seen["norms_gradient"].tolist() == asked.tolist()
        assert torch.equal(seen["gradient"], asked[:, None].expand(-1, 3))


def test_processes_that_bring_different_parts_are_told(together: list[Any]) -> None:
    for answer in together:
        assert "must bring the same sides with the same parts" in answer["mismatched"]


def test_joined_lots_may_be_uneven_or_empty(together: list[Any]) -> None:
    for answer in together:
        assert answer["uneven"]["at"].tolist() == [1, 1, 2, 2, 2, 2][: 2 if len(together) == 2 else 6]
        assert answer["uneven"]["vectors"][:, 0].tolist() == answer["uneven"]["at"].tolist()


def test_one_process_gathers_nothing() -> None:
    batch = whole_batch(0)
    sides, everyone, own = gather(batch.items, batch)
    assert sides == batch.items
    assert everyone.rows is batch.rows
    assert own == slice(0, ROWS)
