"""Extractions of one and of several tuned checkpoints, and whether their files are the same."""

from __future__ import annotations

from pathlib import Path

from lorakit.lora_ops import (
    extract_file,
    extract_files,
    open_source,
    plan_file,
)


def alone(base: Path, tuned: Path, output: Path, rule=None, *, where=None, exact=False, **options):
    """What a single extraction writes."""
    with open_source(base) as one, open_source(tuned) as two:
        format = options.get("format", "comfy")
        plan = plan_file(one, two, rule, output=output, **options)
        return extract_file(
            plan, one, two, output, format=format, exact=exact, placement=where, version="1"
        )


def many(base: Path, tuned: list[Path], folder: Path, rule=None, *, where=None, **options):
    with open_source(base) as source:
        return extract_files(source, tuned, folder, rule, placement=where, version="1", **options)


def same_bytes(folder: Path, tuned: Path) -> bool:
    """Whether the file made with others is that made alone."""
    one, other = ((folder / where / tuned.name).read_bytes() for where in ("one", "all"))
    return one == other
