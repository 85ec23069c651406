"""Lint: what is odd about an adapter file, and which programs load what of it."""

from __future__ import annotations

from .findings import CODES, Finding, Severity
from .lint import Lint, lint
from .programs import PROGRAMS
from .reading import Read, Verdict

__all__ = ["CODES", "PROGRAMS", "Finding", "Lint", "Read", "Severity", "Verdict", "lint"]
