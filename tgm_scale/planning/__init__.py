"""Costs of a run before it starts: arithmetic, memory, network and time, and what would fit a machine."""
