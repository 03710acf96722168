"""Commands on whole corpora: build, check, caption, cache relevance maps."""
