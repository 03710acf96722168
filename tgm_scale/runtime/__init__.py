"""Ground floor: keyed randomness, processes, logs. Knows nothing of video."""
