"""`tgm-scale` with torch's deterministic kernels, or an error that names an operation without one.

python -m gpu_checks.deterministic pretrain --config ..."""

import sys

import torch

from tgm_scale.cli import entry

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    sys.argv[0] = "tgm-scale"
    entry()
