"""Hard negatives in a plain PyTorch loop: 256 families of 8 look-alikes, seen through noise. `python plain_torch.py`"""

import torch
from torch import nn

from miners import GIST, NGAME, Block, DrawnBatches, InBatch, Items, NegativePool, Ragged, Shuffled, Store, TrainingTable

torch.manual_seed(0)
things = (torch.randn(256, 1, 32) + 0.15 * torch.randn(256, 8, 32)).reshape(-1, 32)  # (2048, 32)
views = things + 0.12 * torch.randn_like(things)
ids = torch.arange(len(things))

def train(batch_miner, chain, epochs=4):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    batch_miner.attach(TrainingTable(ids, Ragged.from_lists([[int(i)] for i in ids])))
    batches = DrawnBatches(batch_miner)
    for epoch in range(epochs):
        with torch.no_grad():
            batch_miner.refresh({"query": Store(encoder(views), ids, "query")})
        batches.set_epoch(epoch)
        for batch in batches:
            rows = torch.tensor([row.index for row in batch])
            anchors = Items(encoder(views[rows]), rows, guide=views[rows], space="query")
            others = Items(encoder(things[rows]), rows, guide=things[rows], space="document")
            own = Block(Items(others.embeddings[:, None], rows[:, None], guide=others.guide[:, None]), "positive")
            pool = NegativePool(anchors, own, temperature=0.05, sides={"anchors": anchors, "positives": others})
            for miner in chain:
                pool = miner(pool)
            positive = pool.logits(own)[:, 0]
            (torch.logaddexp(positive, pool.mass()) - positive).mean().backward()
            optimizer.step(), optimizer.zero_grad()
    found = (nn.functional.normalize(encoder(views), dim=1) @ nn.functional.normalize(encoder(things), dim=1).T).argmax(1)
    return (found == ids).float().mean().item()


print(f"random batches: {train(Shuffled(batch_size=64), [InBatch()]):.3f} found at rank 1")
print(f"NGAME and GIST: {train(NGAME(16, batch_size=64), [InBatch(), GIST()]):.3f} found at rank 1")
