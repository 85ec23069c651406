"""A GGUF file that is written like the one it is made from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from ...errors import ArgumentError
from ...files import GgufFile, QuantisedSource
from ...files.quantised.encoding_gguf import ENCODED, check_package
from ...files.writing.gguf_writer import GgufLayout, GgufTensor
from ...models.architectures import UNET, parameters
from ...report import counted
from ...source import TensorSource
from .gguf_file_plan import PLAIN_TYPES, TYPE_ELEMENTS, GgufPlan, carried, types_note
from .storing import InScheme
from .storing_plan import Wanted, check_quantise, fits, nearest_notes, pattern_notes
from .tiles import Planned


def as_stored(
    tensors: Mapping[str, Planned],
    checkpoint: TensorSource,
    file: GgufFile,
    wanted: Wanted,
    numbers: Container[str] = (),
) -> tuple[dict[str, Planned], GgufPlan]:
    """Write every tensor under the type that it has, where that can be encoded.

    What does not change keeps its bytes, and the file all that it says of its model.

    Args:
        tensors: Of the result, as numbers, by key.
        checkpoint: What the result is made like.
        file: The GGUF file that it is.
        wanted: What is asked for, without a way to store them.
        numbers: Keys of what is to be numbers.

    Raises:
        ArgumentError: A weight would change whose rows lie turned in the file; or what is to be
            quantised is named.
        QuantisedError: What encodes blocks is not installed.
    """
    check_quantise(wanted)
    known = {key: one for one in parameters(checkpoint).values() for key in one.keys}
    decoded = checkpoint.weights if isinstance(checkpoint, QuantisedSource) else {}
    found: dict[str, Planned] = {}
    layout: dict[str, GgufTensor] = {}
    replaced: dict[str, list[str]] = {}
    whole: list[str] = []
    new: list[tuple[str, bool]] = []
    for key in (key for key in file.keys() if key in tensors):  # noqa: SIM118
        one, type, shape = tensors[key], file.type(key).name, file.logical_shape(key)
        name = known[key].name.removeprefix(UNET) if key in known else ""
        if stays := type not in TYPE_ELEMENTS and fits(name, wanted.whole):
            whole.append(name)
        is_number = stays or key in numbers
        if not is_number and not one.steps and one.source is checkpoint and key in decoded:
            found[key] = Planned(key, file, key, file.element(key))
        elif file.heads(key):
            raise ArgumentError(
                f"`{key}` lies in the file with its rows turned, and cannot be changed there; write a "
                "safetensors file"
            )
        elif type in TYPE_ELEMENTS or is_number:
            if one.element != file.element(key):
                type = PLAIN_TYPES.get(one.element, type)
            found[key] = replace(one, element=TYPE_ELEMENTS[type])
        else:
            if type not in ENCODED:
                replaced.setdefault(type, []).append(key)
                type = "Q8_0" if ENCODED["Q8_0"].fits(shape) else "BF16"
            storing = InScheme(known[key], ENCODED[type]) if type in ENCODED else None
            element = storing.element if storing else TYPE_ELEMENTS[type]
            found[key] = replace(one, element=element, storing=storing)
            new += [(type, storing.by_chance)] if storing else []
        name, stored = file.stored(key)
        layout[key] = GgufTensor(name, type, shape, None if stored == shape else stored)
    if any(one.storing for one in found.values()):
        check_package()
    notes = [types_note(layout.values())]
    notes += [
        f"{counted(len(keys), 'weight')} stored as {type}, which the package gguf does not encode, the first "
        f"`{keys[0]}`: {'it is' if len(keys) == 1 else 'they are'} written as {layout[keys[0]].type}"
        for type, keys in replaced.items()
    ]
    notes += nearest_notes(wanted, new)
    notes += pattern_notes("stays whole", wanted.whole, whole)
    return found, GgufPlan(GgufLayout(layout, carried(file)), (), tuple(notes))
