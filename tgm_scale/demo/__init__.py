"""Parts of `make demo`: a synthetic corpus, a small CLIP trained on it, and the report of a training with both."""
