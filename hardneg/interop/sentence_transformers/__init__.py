"""Our miners in SentenceTransformerTrainer: batch miners as its batch samplers, chains as losses, tables as data.

    batches = MinerBatches(NGAME(cluster_size=16))
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(batch_sampler=batches, ...),
        train_dataset,
        loss=ChainLoss(model, [InBatch(), GIST()], guide=guide),
        callbacks=[RefreshNegatives(batches)],
    )

Works with several data sets and losses, prompts, Router modules, gradient caching and several processes.
"""

try:
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import sentence_transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"hardneg.interop.sentence_transformers needs {error.name}: run `pip install 'hardneg[train]' "
        "'sentence-transformers[train]'`."
    ) from error

from hardneg.interop.sentence_transformers.batches import MinerBatches, MinerBatchSampler
from hardneg.interop.sentence_transformers.chain import ChainLoss
from hardneg.interop.sentence_transformers.refresh import RefreshNegatives
from hardneg.interop.sentence_transformers.tables import training_rows

__all__ = ["ChainLoss", "MinerBatchSampler", "MinerBatches", "RefreshNegatives", "training_rows"]
