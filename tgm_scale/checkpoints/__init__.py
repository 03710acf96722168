"""The checkpoint format: writing, reading, digests, averaged weights."""
