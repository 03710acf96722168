"""Corpora: WebDataset shards, folders and lists of videos, with an index of their samples."""
