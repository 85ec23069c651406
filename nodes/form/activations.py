"""What nodes that cut by the layers' output have in common: a file of activations, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

from ..host import host
from ..host.api import io

if TYPE_CHECKING:
    from ...lora_ops import FileSource

NONE = "none"


def activations_input() -> io.Combo.Input:
    """The input `activations`: last, as it came last, and the host keeps values by position."""
    return io.Combo.Input(
        "activations",
        options=[NONE, *host.file_names(host.ACTIVATIONS)],
        default=NONE,
        optional=True,
        tooltip="What goes into the layers while the model samples, a file of Save Activations: the error of the "
        "layers' output counts then, not that of the weights; the report has both. Not with budgets and noise.",
    )


def activations_fingerprint(name: str | None) -> str:
    """A value that changes with the file."""
    return "" if name == NONE else host.fingerprint(name, host.ACTIVATIONS)


@contextlib.contextmanager
def opened_activations(name: str) -> Generator[FileSource | None]:
    """The file of an input; None for none.

    Raises:
        FileNotFoundError: There is no such file.
        FormatError: It is damaged.
    """
    from ...lora_ops import open_source

    if name == NONE:
        yield None
        return
    with open_source(host.file_path(name, host.ACTIVATIONS)) as source:
        yield source
