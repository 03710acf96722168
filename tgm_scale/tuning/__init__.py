"""The fastest way to run a configuration, found by real trials."""
