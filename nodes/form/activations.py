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
# Of a text that is no file's name, such as a report: its beginning will do.
_SHOWN = 80


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
        ArgumentError: No list has such a file.
        FormatError: It is damaged.
    """
    from ...lora_ops import ArgumentError, open_source
    from ...lora_ops.text import plain

    if name == NONE:
        yield None
        return
    try:
        path = host.file_path(name, host.ACTIVATIONS)
    except FileNotFoundError as error:
        raise ArgumentError(
            f"`activations` is no file in models/activations or output/activations: {plain(name[:_SHOWN])}; connect "
            "the output `activations` of Save Activations, whose `prefix` begins with activations/, or choose a file"
        ) from error
    with open_source(path) as source:
        yield source
