"""The run folder: configuration, metrics, events, what was left out; which checkpoint a run resumes from."""
