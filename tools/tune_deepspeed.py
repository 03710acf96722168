"""Script form of `tgm-scale tune`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("tune", "tune_deepspeed")
