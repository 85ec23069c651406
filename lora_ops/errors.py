"""Everything lorakit raises on purpose.

LoraOpsError                  carries the target and the path where they are known
├── FormatError               a file is not what we read
│   ├── UnknownFormatError    no format claims the names in it
│   ├── UnsupportedLayerError recognised, but this operation cannot treat that kind
│   ├── LayerShapeError       the factors of one layer disagree
│   ├── QuantisedError        numbers stored with scales: not plain weights
│   └── UnsafePickleError     opening it would run code from the file
├── MismatchError             two inputs do not belong together
│   ├── TargetMismatchError   too few names in common
│   └── WeightShapeError      one name, two shapes
├── ArgumentError             a request that cannot be met as asked (also a ValueError)
├── WriteError                the output could not be written; nothing was left behind
├── MissingPartsError         not all parts of some work are there
└── NonFiniteError            NaN or infinity came in, or would go out

A message states what, where, the values and the way out: lower case, no full stop, names in backticks.
The way out is in Python's words, in two forms: what to give as `dtype=`, `to="lora"` or `force=True`, what
to call as `describe()` or `convert(lora, to="lora")`. So are notes, reasons of skips and cures of lint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class LoraOpsError(Exception):
    """Base of all of them: catch this one to catch what lorakit says, and let bugs through.

    Attributes:
        target: The layer it is about, if one.
        path: The file it is about, if one; it stands in front of the message.
    """

    def __init__(
        self, message: str, *, target: str | None = None, path: str | Path | None = None
    ) -> None:
        super().__init__(message)
        self.target = target
        self.path = Path(path) if path is not None else None

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.path is None else f"{self.path}: {message}"


class FormatError(LoraOpsError):
    """A file is not what we read: damaged, hostile, or of another kind."""


class UnknownFormatError(FormatError):
    """No format claims the names in the file."""


class UnsupportedLayerError(FormatError):
    """The kind of layer is recognised, but this operation cannot treat it."""


class LayerShapeError(FormatError):
    """The factors of one layer disagree with each other."""


class QuantisedError(FormatError):
    """The numbers are stored with separate scales; read plainly they would be wrong."""


class UnsafePickleError(FormatError):
    """Opening the file would mean running code that it carries."""


class MismatchError(LoraOpsError):
    """Two inputs do not belong together."""


class TargetMismatchError(MismatchError):
    """Too few layers carry the same name on both sides."""


class WeightShapeError(MismatchError):
    """One name has two shapes."""


class ArgumentError(LoraOpsError, ValueError):
    """The request cannot be met as asked; the command line exits with status 2."""


class WriteError(LoraOpsError):
    """The output could not be written; nothing was left under its name."""


class NonFiniteError(LoraOpsError):
    """NaN or infinity came in, or would go out."""


class MissingPartsError(LoraOpsError):
    """Not all parts of some work are there; the command line exits with status 3.

    Attributes:
        items: Names of what is missing.
    """

    def __init__(
        self, message: str, items: Sequence[str], *, path: str | Path | None = None
    ) -> None:
        super().__init__(message, path=path)
        self.items = tuple(items)
