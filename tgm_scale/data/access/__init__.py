"""Bytes of files and URLs: opening, ranges, retries, the cache on disk."""
