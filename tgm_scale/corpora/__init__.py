"""Whole corpora: made, looked through, captioned, given maps of relevance. Data meets frozen models here."""
