"""Order of the samples, their batches, and the processes that decode them."""
