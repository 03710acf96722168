"""DeepSpeed: configuration, start-up, state, and the update at the end of a step."""
