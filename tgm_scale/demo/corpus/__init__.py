"""Synthetic clips with captions, and the true position of each described object."""
