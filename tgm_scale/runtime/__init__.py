"""The lowest layer: keyed randomness, processes, files, terminal. Nothing here concerns video."""
