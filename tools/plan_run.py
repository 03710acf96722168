"""`tgm-scale plan`, by the name of this file."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("plan", "plan_run")
