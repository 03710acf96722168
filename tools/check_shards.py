"""Script form of `tgm-scale shards check`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("shards check", "check_shards")
