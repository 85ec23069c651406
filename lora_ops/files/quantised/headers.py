"""What a scheme asks of a file before any weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import cast

import torch

from ...errors import QuantisedError
from ...source import TensorSource
from ..base import quote

_LONGEST = 1 << 20  # bytes of a configuration


class Headers:
    """Names, shapes and dtypes of a file, and the small configurations that it holds as tensors.

    Args:
        source: The file.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.keys = dict.fromkeys(source.keys())
        self.metadata = source.metadata

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self.source.shape(key))

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self.source.dtype(key)

    def held(self, layer: str, *names: str) -> tuple[str, ...]:
        """Those of a layer's tensors that the file has."""
        return tuple(key for name in names if (key := f"{layer}.{name}") in self.keys)

    def needed(self, layer: str, *names: str) -> dict[str, str]:
        """The keys of a layer's tensors, by their names.

        Raises:
            QuantisedError: The file lacks one.
        """
        for name in names:
            if f"{layer}.{name}" not in self.keys:
                raise self.damaged(layer, f"the file has no {quote(f'{layer}.{name}')}")
        return {name: f"{layer}.{name}" for name in names}

    def settings(self, layer: str, key: str) -> dict[str, object]:
        """A configuration that is stored as a tensor of bytes: JSON.

        Raises:
            QuantisedError: It is none.
        """
        if self.dtype(key).itemsize != 1 or math.prod(self.shape(key)) > _LONGEST:
            raise self.damaged(layer, f"{quote(key)} is no text")
        text = self.source.tensor(key).contiguous().view(torch.uint8).numpy().tobytes()
        return self.parsed(layer, text, key)

    def parsed(self, layer: str, text: str | bytes, key: str) -> dict[str, object]:
        """A JSON object.

        Raises:
            QuantisedError: It is none.
        """
        try:
            found: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.damaged(layer, f"{quote(key)} is no JSON") from error
        if not isinstance(found, dict):
            raise self.damaged(layer, f"{quote(key)} is no JSON object")
        return cast("dict[str, object]", found)

    def check(self, layer: str, key: str, *shapes: tuple[int, ...]) -> None:
        """Raise a `QuantisedError` for a tensor that has none of some shapes."""
        shape = self.shape(key)
        if shape not in shapes:
            wanted = " or ".join(str(list(one)) for one in shapes)
            raise self.damaged(layer, f"{quote(key)} has the shape {list(shape)}, not {wanted}")

    def check_dtype(self, layer: str, key: str, *dtypes: torch.dtype) -> None:
        """Raise a `QuantisedError` for a tensor that has none of some dtypes."""
        dtype = self.dtype(key)
        if dtype not in dtypes:
            wanted = " or ".join(str(one).removeprefix("torch.") for one in dtypes)
            found = str(dtype).removeprefix("torch.")
            raise self.damaged(layer, f"{quote(key)} is stored as {found}, not {wanted}")

    def check_floats(self, layer: str, *keys: str) -> None:
        """Raise a `QuantisedError` for scales or a table that is stored as no wide floats."""
        for key in keys:
            self.check_dtype(
                *(layer, key, torch.float32, torch.bfloat16, torch.float16, torch.float64)
            )

    def blocks(self, layer: str, key: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many blocks of rows and of columns of a weight scales are for.

        Args:
            layer: For messages.
            key: Of the scales: one; one a row, as a vector or a column; those of the blocks of each
                row, as a matrix or with a last axis of 1; or those of tiles. Of a weight of more than
                two axes: one; one for each of its first axis; or one a row.
            shape: Of the weight.

        Raises:
            QuantisedError: They are none of these, or no floats.
        """
        self.check_floats(layer, key)
        stored = held = self.shape(key)
        if not all(shape):
            raise self.damaged(layer, f"its codes have the shape {list(shape)}: no numbers")
        rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
        if math.prod(held) == 1:
            return 1, 1
        if len(shape) > 2:  # experts in one tensor, or kernels: one for each, or for each row
            held = next(
                ((count, 1) for count in (rows, shape[0]) if math.prod(held) == count), held
            )
        elif len(held) == 3 and held[-1] == 1:
            held = held[:2]
        if held == (rows,):
            held = (rows, 1)
        if len(held) != 2 or not all(held) or rows % held[0] or columns % held[1]:
            raise self.damaged(
                layer,
                f"{quote(key)} has the shape {list(stored)}, which are no blocks of a weight of "
                f"{list(shape)}",
            )
        return held[0], held[1]

    def damaged(self, layer: str, reason: str) -> QuantisedError:
        """The error for a layer whose tensors do not make a weight."""
        return QuantisedError(
            f"the weight of {quote(layer)} cannot be decoded: {reason}",
            target=layer,
            path=self.source.name,
        )


def number(settings: Mapping[str, object], name: str, default: int) -> int:
    """A whole number of a configuration; old writers put some under `params`."""
    params = settings.get("params")
    inner = cast("Mapping[str, object]", params) if isinstance(params, dict) else {}
    found = settings.get(name, inner.get(name, default))
    return found if isinstance(found, int) else -1
