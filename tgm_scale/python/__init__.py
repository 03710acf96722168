"""What `import tgm_scale` gives: an encoder, relevance and masks, a corpus (docs/PYTHON.md)."""
