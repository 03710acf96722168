"""Where the wings meet: engine, loop, checkpoint, metrics."""
