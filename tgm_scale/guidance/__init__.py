"""Frozen towers and their outputs for a clip: caption embeddings, relevance, attention, parts, flow."""
