"""Hard negatives in a plain PyTorch loop: 256 families of 8 look-alikes, seen through noise. `python plain_torch.py`"""

import torch
from torch.nn import functional as F

from miners import GIST, NGAME, Block, InBatch, Items, NegativePool, Ragged, Shuffled, Store, TrainingTable

torch.manual_seed(0)
things = (torch.randn(256, 1, 32) + 0.15 * torch.randn(256, 8, 32)).reshape(-1, 32)  # (2048, 32)
views = things + 0.12 * torch.randn_like(things)
ids = torch.arange(len(things))


def train(batches, chain):
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    batches.attach(TrainingTable(ids, Ragged(torch.arange(len(ids) + 1), ids)))  # view i shows thing i
    for epoch in range(4):
        batches.refresh({"query": Store(encoder(views).detach(), ids, "query")})
        batches.set_epoch(epoch)
        for rows in map(torch.tensor, batches):
            anchors = Items(encoder(views[rows]), rows, guide=views[rows], space="query")
            others = Items(encoder(things[rows]), rows, guide=things[rows], space="document")
            own = Block(Items(others.embeddings[:, None], rows[:, None], guide=others.guide[:, None]), "positive")
            pool = NegativePool(anchors, own, temperature=0.05, sides={"anchors": anchors, "positives": others})
            for miner in chain:
                pool = miner(pool)
            positive = pool.logits(own)[:, 0]
            optimizer.zero_grad()
            (torch.logaddexp(positive, pool.mass()) - positive).mean().backward()
            optimizer.step()
    found = (F.normalize(encoder(views), dim=1) @ F.normalize(encoder(things), dim=1).T).argmax(1)
    return (found == ids).float().mean().item()


print(f"random batches: {train(Shuffled(batch_size=64), [InBatch()]):.3f} found at rank 1")
print(f"NGAME and GIST: {train(NGAME(16, batch_size=64), [InBatch(), GIST()]):.3f} found at rank 1")
