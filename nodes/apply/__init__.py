"""Adapters onto loaded models."""
