"""Metadata: entries of a file set and taken away, its tensors left as they are."""
