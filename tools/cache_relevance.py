"""`tgm-scale shards cache`, by the name of this file."""

from tgm_scale.cli import entry

if __name__ == "__main__":
    entry("shards cache", "cache_relevance")
