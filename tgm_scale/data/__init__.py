"""From annotations and videos to batches of clips."""
