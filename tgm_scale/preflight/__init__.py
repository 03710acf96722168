"""What is tried on every node before a run starts."""
