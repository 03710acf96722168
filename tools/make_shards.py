"""Script form of `tgm-scale shards make`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("shards make", "make_shards")
