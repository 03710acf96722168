"""What `make demo` shows: a corpus made here, a small CLIP trained on it, and the report of a training with both."""
