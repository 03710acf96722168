"""The parts of tools/damage_drill.py."""

import os

# before torch is imported: threads do not outlive a fork, and each case is one
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
