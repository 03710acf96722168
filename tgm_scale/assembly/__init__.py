"""Everything that a run is built from, derived once from its configuration: plan, towers, masker, module, loader."""
