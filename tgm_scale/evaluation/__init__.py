"""What a pretrained encoder is worth: features, kNN, probes."""
