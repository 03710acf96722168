"""The run folder: configuration, metrics, events, samples left out; the checkpoint that a run resumes from."""
