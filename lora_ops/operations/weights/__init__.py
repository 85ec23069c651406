"""New weights of a checkpoint: steps combine terms, by tiles of rows, in float32, rounded once."""
