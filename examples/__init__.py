"""Samples that ship with lorakit."""
