"""Embeddings, scores and ensembles. The names below are the command line's, which is read before the slow imports."""

SCORERS = ("distance", "nearest", "neighbours", "prototype", "head")  # ways of scoring
