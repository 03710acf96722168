"""Search by real trials for the fastest way to run a configuration."""
