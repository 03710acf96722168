"""Parts of tools/damage_drill.py."""

import os

# before torch is imported: its threads do not survive a fork, and each case is a fork
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
