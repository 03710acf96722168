"""`tgm-scale masks evaluate`, by the name of this file."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("masks evaluate", "evaluate_masks")
