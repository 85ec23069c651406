"""Strengths: of a file, by block, by pattern."""
