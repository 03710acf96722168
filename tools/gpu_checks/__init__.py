"""Parts of tools/gpu.py: its checks on a machine with a GPU, each in its own processes, and its report."""
