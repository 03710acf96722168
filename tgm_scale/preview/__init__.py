"""What would be hidden in clips of one's own: one HTML page of pictures and figures, before a run."""

RECIPES = ["text_guided", "motion_guided", "tube"]  # where none is named, after the configuration's
