"""Adapters from models and files."""
