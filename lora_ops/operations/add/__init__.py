"""Add: several adapters as one."""
