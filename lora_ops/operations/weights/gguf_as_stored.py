"""A GGUF file that is written like the one it is made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ...errors import ArgumentError
from ...files import GgufFile, QuantisedSource
from ...files.quantised.encoding_gguf import ENCODED, check_package
from ...files.writing.gguf_writer import GgufLayout, GgufTensor
from ...models.architectures import parameters
from ...report import counted
from ...source import TensorSource
from .gguf_file_plan import ELEMENTS, PLAIN, GgufPlan, carried, types_note
from .storing import Storing


def as_stored(
    checkpoint: TensorSource,
    file: GgufFile,
    dtypes: Mapping[str, torch.dtype],
    changed: Collection[str],
) -> GgufPlan:
    """Write every tensor under the type that it has, where that can be encoded.

    What does not change keeps its bytes, and the file all that it says of its model.

    Args:
        checkpoint: What the result is made like.
        file: The GGUF file that it is.
        dtypes: Of the result where it is numbers, by key.
        changed: Keys of what changes.

    Raises:
        ArgumentError: A weight would change whose rows lie turned in the file.
        QuantisedError: What encodes blocks is not installed.
    """
    known = {key: one for one in parameters(checkpoint).values() for key in one.keys}
    decoded = checkpoint.weights if isinstance(checkpoint, QuantisedSource) else {}
    tensors: dict[str, GgufTensor] = {}
    storing: dict[str, Storing] = {}
    copied: list[str] = []
    replaced: dict[str, list[str]] = {}
    for key in (key for key in file.keys() if key in dtypes):  # noqa: SIM118
        (name, stored), shape, type = file.stored(key), file.logical_shape(key), file.type(key).name
        if key not in changed and key in decoded:
            copied.append(key)
        elif file.heads(key):
            raise ArgumentError(
                f"`{key}` lies in the file with its rows turned, and cannot be changed there; write a "
                "safetensors file"
            )
        elif type in ELEMENTS:
            if dtypes[key] != file.dtype(key):
                type = PLAIN.get(dtypes[key], type)
        else:
            if type not in ENCODED:
                replaced.setdefault(type, []).append(key)
                type = "Q8_0" if ENCODED["Q8_0"].fits(shape) else "BF16"
            if type in ENCODED:
                storing[key] = Storing(ENCODED[type], known[key])
        tensors[key] = GgufTensor(name, type, shape, None if stored == shape else stored)
    if storing:
        check_package()
    found = {key: ELEMENTS.get(one.type, torch.uint8) for key, one in tensors.items()}
    notes = [types_note(tensors.values())]
    notes += [
        f"{counted(len(keys), 'weight')} stored as {type}, which the package gguf does not encode, the first "
        f"`{keys[0]}`: {'it is' if len(keys) == 1 else 'they are'} written as {tensors[keys[0]].type}"
        for type, keys in replaced.items()
    ]
    return GgufPlan(GgufLayout(tensors, carried(file)), found, storing, copied, (), tuple(notes))
