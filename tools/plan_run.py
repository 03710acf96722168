"""Script form of `tgm-scale plan`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("plan", "plan_run")
