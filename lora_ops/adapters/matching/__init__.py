"""Which layers of several adapters, or which weights of a checkpoint, are meant."""
