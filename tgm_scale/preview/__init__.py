"""Preview of what masking hides in the user's clips: one HTML page of pictures and metrics, before a run."""

RECIPES = ["text_guided", "motion_guided", "tube"]  # default recipes, after the configuration's
