"""Training of the small CLIP."""
