"""Results as plain data and tensors: what a part of the work leaves in its file, to be taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import TypeAlias, cast

from torch import Tensor

# What JSON holds: numbers, strings, lists, and maps by strings.
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def pack(value: object, tensors: MutableMapping[str, Tensor], name: str) -> Json:
    """Return a result as JSON holds it; its tensors are put beside it.

    Dataclasses become their fields under the class's name, so that nothing but those that a reader
    names can come of it.

    Args:
        value: Made of dataclasses, tuples, tensors, numbers, strings and None.
        tensors: Where the tensors go, under names of their own.
        name: What these begin with.

    Raises:
        TypeError: It holds something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        key = f"{name}.{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, tuple):
        return [pack(one, tensors, name) for one in cast("tuple[object, ...]", value)]
    if is_dataclass(value) and not isinstance(value, type):
        told = {one.name: pack(getattr(value, one.name), tensors, name) for one in fields(value)}
        return {"of": type(value).__name__, **told}
    raise TypeError(f"{type(value).__name__} cannot be put into a part")


def unpack(
    told: Json, tensor: Callable[[str], Tensor], classes: Mapping[str, type[object]]
) -> object:
    """Return what was packed.

    Args:
        told: From `pack`, by way of a file.
        tensor: Reads a tensor.
        classes: The dataclasses that may come of it, by name.

    Raises:
        KeyError: It names another class.
        TypeError: The fields are not those of the class.
    """
    if isinstance(told, list):
        return tuple(unpack(one, tensor, classes) for one in told)
    if not isinstance(told, dict):
        return told
    if "tensor" in told:
        return tensor(str(told["tensor"]))
    made = {key: unpack(one, tensor, classes) for key, one in told.items() if key != "of"}
    return classes[str(told["of"])](**made)


def by_name(*classes: type[object]) -> dict[str, type[object]]:
    """Return dataclasses by their names, for `unpack`."""
    return {one.__name__: one for one in classes}
