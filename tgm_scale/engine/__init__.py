"""DeepSpeed: its configuration, its start, its state, and the end of a step."""
