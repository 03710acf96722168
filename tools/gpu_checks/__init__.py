"""The parts of tools/gpu.py: what it tries on a machine with a GPU, in processes of their own, and what it tells."""
