"""Evaluation of a pretrained encoder: features, kNN, probes, retrieval, masks."""
