"""Script form of `tgm-scale shards caption`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("shards caption", "caption_clips")
