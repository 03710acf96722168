"""Synthetic clips with captions, and the truth of where each described object is."""
