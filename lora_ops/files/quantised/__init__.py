"""Weights that are stored with scales: what scheme it is, and the numbers that they stand for."""
