"""DeepSpeed: its configuration, start, state, and the update at the end of a step."""
