"""Resize: an adapter at other ranks."""
