"""Requantise: a checkpoint whose weights are written with scales, and nothing else changed."""
