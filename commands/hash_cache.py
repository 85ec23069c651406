"""The option --no-hash-cache, for commands that take hashes of large files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import click


def _forget(context: click.Context, option: click.Parameter, is_given: bool) -> None:
    """Let no hash be looked up, nor remembered, as long as the command runs."""
    del option
    if is_given:
        context.with_resource(_without_cache())


@contextlib.contextmanager
def _without_cache() -> Generator[None, None, None]:
    before = os.environ.get("LORAKIT_CACHE")
    os.environ["LORAKIT_CACHE"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LORAKIT_CACHE"]
        else:
            os.environ["LORAKIT_CACHE"] = before


#: For a command that takes hashes of large files; its function does not get it.
hash_cache_option = click.option(
    "--no-hash-cache",
    is_flag=True,
    expose_value=False,
    callback=_forget,
    help="Take the hashes of large files anew, and remember none of them.",
)
