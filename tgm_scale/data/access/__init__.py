"""Byte access to files and URLs: opening, range reads, retries, the disk cache."""
