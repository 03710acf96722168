"""From annotations and whole videos to shards."""
