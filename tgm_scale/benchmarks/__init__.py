"""Benchmarks of `tgm-scale benchmark`, one module each with `run(options)`, which returns its figures."""
