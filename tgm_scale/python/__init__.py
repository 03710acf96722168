"""Public API of `import tgm_scale`: an encoder, relevance and masks, a corpus (docs/PYTHON.md)."""
