"""Frozen towers and what they say about a clip: caption embeddings and patch-caption relevance."""
