"""Health checks of every node before a run starts."""
