"""The miners inside other people's trainers; each module loads its peer when it is imported, and not before.

`hardneg.interop.sentence_transformers`: batch miners, chains and mined tables in SentenceTransformerTrainer.
`hardneg.interop.pytorch_metric_learning`: chains as its miners, its losses in our chains.
"""
