"""What an adapter is, and how two compare."""
