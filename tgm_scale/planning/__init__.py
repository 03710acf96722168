"""Everything that follows from a configuration, derived once, and the parts that are built from it."""
