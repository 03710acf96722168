"""`tgm-scale tune`, by the name of this file."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("tune", "tune_deepspeed")
