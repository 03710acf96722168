"""What would be hidden in clips of one's own: one HTML page of pictures and figures, before a run."""
