"""NGAME batches and GIST inside SentenceTransformerTrainer: a student of 2 layers, judged by the model it was cut from.

About two minutes on two cores, without network: `python sentence_transformers_trainer.py [--steps 40] [--rows 1000]`
"""

import argparse
import tempfile

from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from datamodules import RetrievalData
from hardneg.encoders import TextEncoder
from hardneg.interop.sentence_transformers import ChainLoss, MinerBatches, RefreshNegatives
from hardneg.losses import InfoNCE
from miners import GIST, NGAME, InBatch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--rows", type=int, default=1000, help="training rows; a quarter as many queries are evaluated")
options = parser.parse_args()

data = RetrievalData("sample:wordnet_senses")
data.setup("fit")
rows = data.positives("train")
train = Dataset.from_dict(
    {
        "query": data.text_of(rows.queries[: options.rows], "query"),
        "document": data.text_of(rows.documents[: options.rows], "document"),
    }
)
judged = {query: set(found) for query, found in list(data.qrels("dev").items())[: options.rows // 4]}
relevant = set().union(*judged.values())
queries = dict(zip(data.names("query"), data.query_texts, strict=True))
corpus = dict(zip(data.names("document"), data.corpus_texts, strict=True))
corpus = {name: text for at, (name, text) in enumerate(corpus.items()) if name in relevant or at < options.rows}
evaluator = InformationRetrievalEvaluator({name: queries[name] for name in judged}, corpus, judged, name="dev")

student = TextEncoder("packaged:all-MiniLM-L6-v2", num_layers=2, max_seq_length=48, dropout=0.0).transformer
guide = TextEncoder("packaged:all-MiniLM-L6-v2").transformer
batches = MinerBatches(NGAME(cluster_size=16))
with tempfile.TemporaryDirectory() as folder:
    arguments = SentenceTransformerTrainingArguments(
        folder, batch_sampler=batches, max_steps=options.steps, per_device_train_batch_size=64, learning_rate=1e-4,
        warmup_steps=5, save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=20,
    )  # fmt: skip
    loss = ChainLoss(student, [InBatch(), GIST()], InfoNCE(0.05), guide)
    trainer = SentenceTransformerTrainer(
        student, arguments, train, loss=loss, callbacks=[RefreshNegatives(batches, loss=loss)]
    )
    before = evaluator(student)
    trainer.train()
print(f"nDCG@10 of {len(judged)} queries before: {before['dev_cosine_ndcg@10']:.3f}")
print(f"nDCG@10 after {options.steps} steps: {evaluator(student)['dev_cosine_ndcg@10']:.3f}")
