"""Frozen towers and what they compute for a clip: caption embeddings, relevance, attention, parts, flow."""
