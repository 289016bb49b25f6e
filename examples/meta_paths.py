"""MEOW on a graph: a coarse and a fine view of every node through meta-paths, and clusters as weights of negatives.

    pip install 'hardneg[cpu,train,graph]'
    python meta_paths.py $HARDNEG_DATA/graph_onet/graph.npz      # without a file: a graph that is made up

Coarse: features over all meta-paths at once; fine: over each by itself, fused by their mean (the paper's is attention).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import AddMetaPaths

from datamodules.table_files import read_graph
from hardneg.losses import InfoNCE
from hardneg.metrics import accuracy_and_macro_f1, linear_probe
from miners import Block, ClusterWeights, InBatch, Items, NegativePool, Store


def made_up(nodes: int = 300, classes: int = 6) -> dict[str, np.ndarray]:
    """Nodes whose features say little and whose neighbours say more of their class."""
    random = np.random.default_rng(0)
    labels = np.arange(nodes) % classes
    x = np.eye(classes)[labels] + 2 * random.normal(size=(nodes, classes))
    parts: dict[str, np.ndarray] = {"labels": labels, "x": x}
    for name in ("edge_od", "edge_oc"):
        group = (labels * 10 + random.integers(0, 10, nodes)) * (random.random(nodes) < 0.7)
        parts[name] = np.stack([np.arange(nodes), group], 1)
    order = random.permutation(nodes)
    return parts | {"train": order[: nodes // 3], "test": order[nodes // 3 :]}


def read(file: str) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        parts = {name: arrays[name] for name in arrays.files if name.startswith("edge_o") or name in ("train", "test")}
        labels = arrays["labels"]
    return parts | {"labels": labels, "x": np.stack(list(read_graph(Path(file)).numbers.values()), 1)}


def meta_paths(parts: dict[str, np.ndarray], nearest: int = 20) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Edges and weights of each meta-path o-x-o: every node's nearest by PathSim, 2 A_ij / (A_ii + A_jj)."""
    data, number, paths = HeteroData(), len(parts["labels"]), []
    data["o"].num_nodes = number
    for name in (name for name in parts if name.startswith("edge_o")):
        edges = torch.from_numpy(np.ascontiguousarray(parts[name].T, dtype=np.int64))
        data[name].num_nodes = int(edges[1].max()) + 1
        data["o", "has", name].edge_index, data[name, "of", "o"].edge_index = edges, edges.flip(0).contiguous()
        paths.append([("o", "has", name), (name, "of", "o")])
    data = AddMetaPaths(paths, weighted=True)(data)
    found = []
    for at in range(len(paths)):
        path = data["o", f"metapath_{at}", "o"]
        counts = torch.zeros(number, number).index_put_(tuple(path.edge_index), path.edge_weight, accumulate=True)
        own = counts.diagonal()
        similarity = 2 * counts / (own[:, None] + own).clamp_min(1)
        values, columns = similarity.fill_diagonal_(0).topk(min(nearest, number), dim=1)
        rows = torch.arange(number)[:, None].expand_as(columns)
        kept = values > 0
        found.append((torch.stack([columns[kept], rows[kept]]), values[kept]))
    return found


class Views(nn.Module):
    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = GCNConv(features, width), GCNConv(width, width)
        self.relu, self.drop = nn.PReLU(), nn.Dropout(0.3)
        self.project = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def over(self, x: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return self.second(self.relu(self.first(self.drop(x), edges, weights)), edges, weights)

    def coarse(self, x: torch.Tensor, paths: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        return self.over(x, torch.cat([edges for edges, _ in paths], 1), torch.cat([weights for _, weights in paths]))

    def fine(self, x: torch.Tensor, paths: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        return torch.stack([self.over(x, *path) for path in paths]).mean(0)


def train(parts: dict[str, np.ndarray], paths: list, chain: list, epochs: int) -> tuple[float, float]:
    torch.manual_seed(0)
    x, ids, loss = torch.from_numpy(parts["x"]).float(), torch.arange(len(parts["x"])), InfoNCE(0.4)
    views = Views(x.shape[1])
    optimizer = torch.optim.AdamW(views.parameters(), lr=5e-3)
    for _ in range(epochs):
        with torch.no_grad():  # all nodes are one batch: their clusters are of this epoch
            store = Store(views.project(views.fine(x, paths)), ids, "node")
        coarse = Items(views.project(views.coarse(x, paths)), ids, space="coarse")
        fine = Items(views.project(views.fine(x, paths)), ids, space="node")
        own = Block(fine.map(lambda part: part[:, None]), "positive")
        pool = NegativePool(coarse, own, loss.temperature, sides={"anchors": coarse, "positives": fine})
        for miner in chain:
            miner.refresh({"node": store})
            pool = miner(pool)
        total, count = loss(pool)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    with torch.no_grad():
        features = views.eval().fine(x, paths)
    rows, test = (torch.from_numpy(parts[name].astype(np.int64)) for name in ("train", "test"))
    labels = torch.from_numpy(parts["labels"].astype(np.int64))
    return accuracy_and_macro_f1(labels[test], linear_probe(features[rows], labels[rows], features[test]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    graph = read(options.file) if options.file else made_up()
    neighbours = meta_paths(graph)
    for name, miners in (("plain", [InBatch()]), ("clusters", [InBatch(), ClusterWeights([10, 30])])):
        accuracy, f1 = train(graph, neighbours, miners, options.epochs)
        print(f"{name:>8}: accuracy {accuracy:.3f}, macro-F1 {f1:.3f}")
