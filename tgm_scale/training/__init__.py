"""Training: the loop, its tasks, faults, metrics."""
