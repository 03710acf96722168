"""Lowest layer: keyed randomness, processes, files, terminal. Nothing about video."""
