"""Data pipeline: from annotations and videos to batches of clips."""
