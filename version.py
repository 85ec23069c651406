"""The version of this package: what its files record, and what pyproject.toml says too."""

from __future__ import annotations

__version__ = "0.1.0"
