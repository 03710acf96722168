"""Shard building from annotations and whole videos."""
