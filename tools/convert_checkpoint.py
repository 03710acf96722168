"""Script form of `tgm-scale convert`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("convert", "convert_checkpoint")
