"""What of a checkpoint a GGUF file holds: its diffusion model alone, and the type of each tensor."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from ...elements import Element
from ...errors import ArgumentError
from ...files.quantised.encoding_gguf import (
    FILE_TYPES,
    GGUF_NUMBERS,
    GGUF_SCHEMES,
    GGUF_TYPES,
    check_package,
)
from ...files.quantised.storages import SCHEMES
from ...files.writing.gguf_writer import GgufLayout, GgufTensor, number, text
from ...models.architectures import UNET, Architecture, Parameter, detect, parameters
from ...models.gguf import GGUF_NAMES, ROW, WITH_KERNELS, is_float32
from ...models.pairing import parameter_kind
from ...models.whole import stays_whole
from ...report import Skip, counted
from ...source import TensorSource
from ...text import either, plain
from .gguf_as_stored import as_stored
from .gguf_file_plan import (
    EMPTY,
    LEFT_OUT,
    NO_TYPE,
    PLAIN_TYPES,
    TYPE_ELEMENTS,
    GgufPlan,
    carried,
    gguf_file,
    types_note,
)
from .native_file import foreign
from .output import GGUF, is_gguf
from .storing import InScheme
from .storing_plan import Wanted, fits, nearest_note
from .tiles import Planned

_ARCHITECTURE, _FILE_TYPE = "general.architecture", "general.file_type"
_VERSION, _VERSION_NOW = "general.quantization_version", 2
_SHOWN = 5  # names in a sentence
_CHOICES = f"{', '.join(GGUF_TYPES[:-1])} or {GGUF_TYPES[-1]}"


def writes_gguf(output: Path | None, to: str, checkpoint: TensorSource) -> bool:
    """Whether the result is a GGUF file, by its name and by the storage that is asked for.

    Args:
        output: Where to; None: nowhere yet.
        to: Name of a storage; empty: as the checkpoint is stored.
        checkpoint: What the result is made like.

    Raises:
        ArgumentError: The two do not agree.
    """
    if output is not None and to in GGUF_TYPES and not is_gguf(output):
        wider = f", or use `dtype=` for a safetensors file of {to}" if to in GGUF_NUMBERS else ""
        raise ArgumentError(
            f"`{to}` is a type of GGUF: choose a name that ends in `{GGUF}`{wider}", path=output
        )
    if is_gguf(output) and to in SCHEMES:
        raise ArgumentError(
            f"a GGUF file does not hold `{to}`: its types are {_CHOICES}; or choose a name that ends in "
            "`.safetensors`",
            path=output,
        )
    if is_gguf(output) and not to and gguf_file(checkpoint) is None:
        raise ArgumentError(
            f"say in what the GGUF file is to hold the weights of {checkpoint.name}: `to=` is {_CHOICES}",
            path=output,
        )
    return is_gguf(output) or to in GGUF_TYPES


def with_gguf(
    tensors: Mapping[str, Planned],
    checkpoint: TensorSource,
    wanted: Wanted,
    numbers: Container[str] = (),
) -> tuple[dict[str, Planned], GgufPlan]:
    """Settle the type of every tensor of a GGUF file.

    Vectors, small tensors and parameters of no layer are float32. Matrices of the diffusion model, and
    kernels of Stable Diffusion, are written as `wanted.to`; in blocks only those that do not stay whole.
    Without it, for a GGUF file alone: each tensor keeps its type, where the package `gguf` can encode it,
    else has `Q8_0`; what does not change keeps its bytes.

    Args:
        tensors: Of the result, as numbers, by key.
        checkpoint: What the result is made like.
        wanted: What is asked for.
        numbers: Keys of what is to be numbers, where nothing says how it is stored.

    Returns:
        The tensors that the file holds, and how they lie in it.

    Raises:
        ArgumentError: There is no such type; or there is no diffusion model under the names of its own
            program; or it is of an architecture that is not known.
        QuantisedError: What encodes blocks is not installed.
    """
    file, to = gguf_file(checkpoint), wanted.to
    if not to and file is not None:
        return as_stored(tensors, checkpoint, file, wanted, numbers)
    if to not in GGUF_TYPES:
        raise ArgumentError(f"the type of GGUF `{plain(to)}` is {either(GGUF_TYPES)}")
    if to in GGUF_SCHEMES:
        check_package()
    known = parameters(checkpoint)
    model = detect(known)
    inside = _own_parameters(checkpoint, known)
    layout: dict[str, GgufTensor] = {}
    found: dict[str, Planned] = {}
    for key, planned in tensors.items():
        one, name = inside.get(key, (None, ""))
        if one is None or not prod(one.shape) or planned.element not in PLAIN_TYPES:
            continue
        lies = layout[key] = _tensor(one, name, planned.element, model, wanted)
        is_blocks = to in GGUF_SCHEMES and lies.type == to.upper()
        storing = InScheme(one, GGUF_SCHEMES[to]) if is_blocks else None
        element = storing.element if storing else TYPE_ELEMENTS[lies.type]
        found[key] = replace(planned, element=element, storing=storing)
    entries, told = _entries(checkpoint, model, to)
    skips = tuple(
        Skip(one.target, one.component, parameter_kind(one), _reason(one), 0.0)
        for one in known.values()
        if one.key in tensors and one.key not in layout
    )
    notes = (types_note(layout.values()), *told, *nearest_note(wanted, GGUF_SCHEMES.get(to)))
    return found, GgufPlan(GgufLayout(layout, entries), skips, notes)


def _own_parameters(
    checkpoint: TensorSource, known: Mapping[str, Parameter]
) -> dict[str, tuple[Parameter, str]]:
    """The parameters of the diffusion model by key, each with its name in the file.

    Raises:
        ArgumentError: Its matrices lie under other names than those of its own program, or in another
            form; or there is none.
    """
    if left := foreign(known):
        unknown = [one.key for one in left if not one.name.startswith(UNET)] or [left[0].key]
        names = ", ".join(f"`{plain(key)}`" for key in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ArgumentError(
            f"{checkpoint.name} has {counted(len(unknown), 'tensor')} under names of diffusers of which no "
            f"table tells those of the model's own program, which programs that read GGUF know: {names}{more}; "
            "give a file of the model's own program"
        )
    inside = [one for one in known.values() if one.component == "unet"]
    names = ((one.key, one.name.removeprefix(UNET)) for one in inside if one.name.startswith(UNET))
    prefixes = {key.removesuffix(name) for key, name in names if key.endswith(name)}
    if not prefixes:
        raise ArgumentError(
            f"{checkpoint.name} has no diffusion model, which is all that a GGUF file holds"
        )
    # Vectors may have names that the program itself takes for others.
    prefix = min(prefixes, key=len)
    return {one.key: (one, one.key.removeprefix(prefix)) for one in inside}


def _tensor(
    one: Parameter, name: str, element: Element, model: Architecture | None, wanted: Wanted
) -> GgufTensor:
    """How a parameter lies in the file, where its numbers are these unless it is written as is wanted."""
    shape, to = one.shape or (1,), wanted.to
    if not element.is_floating_point:
        return GgufTensor(name, PLAIN_TYPES[element], shape)
    if is_float32(name, shape):
        return GgufTensor(name, "F32", shape)
    if to in GGUF_NUMBERS:
        return GgufTensor(name, to.upper(), shape)
    stays = stays_whole(name, model.name if model else None) and not fits(name, wanted.quantise)
    if not stays and not fits(name, wanted.whole) and GGUF_SCHEMES[to].fits(shape):
        if len(shape) == 2:
            return GgufTensor(name, to.upper(), shape)
        family = GGUF_NAMES.get(model.name) if model else None
        if family in WITH_KERNELS and not prod(shape) % ROW:
            return GgufTensor(name, to.upper(), shape, (prod(shape) // ROW, ROW))
    return GgufTensor(name, PLAIN_TYPES[element], shape)


def _entries(
    checkpoint: TensorSource, model: Architecture | None, to: str
) -> tuple[dict[str, bytes], Iterator[str]]:
    """What the header says of the model, and what is to be said of that."""
    file = gguf_file(checkpoint)
    told = carried(file) if file else {}
    notes: list[str] = []
    if _ARCHITECTURE not in told:
        if model is None:
            raise ArgumentError(
                f"a GGUF file names the architecture of its model, and that of {checkpoint.name} is not "
                "known; write a safetensors file"
            )
        told[_ARCHITECTURE] = text(GGUF_NAMES.get(model.name, model.name))
        if model.name not in GGUF_NAMES:
            notes.append(
                f"{model.title} is no architecture that ComfyUI-GGUF knows: the file calls it "
                f"`{model.name}`, and is not loaded there before it does"
            )
    own = {_VERSION: number(_VERSION_NOW), _FILE_TYPE: number(FILE_TYPES[to])}
    first = {_ARCHITECTURE: told[_ARCHITECTURE], **own}
    return {**first, **{name: one for name, one in told.items() if name not in first}}, iter(notes)


def _reason(one: Parameter) -> str:
    if one.component != "unet":
        return LEFT_OUT
    return NO_TYPE if prod(one.shape) else EMPTY
