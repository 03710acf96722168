"""Script form of `tgm-scale benchmark`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("benchmark", "benchmark")
