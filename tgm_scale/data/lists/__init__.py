"""Lists of videos with captions or labels, in the formats in common use."""
