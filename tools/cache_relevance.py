"""Script form of `tgm-scale shards cache`."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("shards cache", "cache_relevance")
