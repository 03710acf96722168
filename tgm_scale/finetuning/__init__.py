"""Training of a classifier, and its test on several views."""
