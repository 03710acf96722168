"""Script form of `tgm-scale masks evaluate`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("masks evaluate", "evaluate_masks")
