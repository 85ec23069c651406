"""Adapters onto loaded models: one, or the rows of a stack, one after another.

Imports the host, and `lora_ops` when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..form.texts import WARNS, applied_lines
from ..host import host
from ..host.lora_model import LoraModel, as_file, read_once
from ..host.rows import Row
from .patch_places import Models
from .patching import Matched, match, summary

if TYPE_CHECKING:
    from ...lora_ops import MemoryFile

# Under this a model knows which rows are on it, with what was read: while it lives, nothing is read again.
_ROWS = "rows"


def apply(
    model: Any,
    clip: Any,
    lora: Mapping[str, Tensor],
    strengths: tuple[float, float],
    blocks: str = "",
    where: Sequence[str] = (),
) -> tuple[Any, Any, list[str]]:
    """Return clones of a MODEL and a CLIP with an adapter on them, and lines that say what matched.

    Args:
        model: The diffusion model, or None.
        clip: The text encoders, or None.
        lora: Not empty.
        strengths: On the diffusion model, on the text encoders.
        blocks: Strengths by block; see `lora_ops.rules`.
        where: `PATTERN=S`, in order; see `lora_ops.rules`.

    Raises:
        MismatchError: Nothing of the adapter fits the models.
        LoraOpsError: A rule that fits nothing.
    """
    file = host_file(lora)
    unet = host.shapes(model) if model is not None else {}
    encoders = host.shapes(clip.patcher) if clip is not None else {}
    models = models_of(model, clip, unet, encoders)
    matched = match(file, models, blocks, where)
    check_any(file, matched)
    if model is not None:
        model = host.patched(model, matched.groups(unet.keys(), strengths[0]), file.metadata)
    if clip is not None:
        clip = host.patched(clip, matched.groups(encoders.keys(), strengths[1]), file.metadata)
    return model, clip, applied_lines(file.name, matched, encoders, strengths)


def host_file(lora: Mapping[str, Tensor]) -> MemoryFile:
    """What a socket holds as an opened file, as the host reads its names."""
    lora = lora if isinstance(lora, LoraModel) else LoraModel(lora)
    return as_file(LoraModel(host.convert_lora(lora), lora.name, lora.metadata))


def models_of(
    model: Any,
    clip: Any,
    unet: Mapping[str, tuple[int, ...]],
    encoders: Mapping[str, tuple[int, ...]],
) -> Models:
    """What adapters are to be matched to.

    Args:
        model: The diffusion model, or None.
        clip: The text encoders, or None.
        unet: Shapes of the diffusion model's weights.
        encoders: Those of the text encoders.
    """
    return Models(
        host.key_map(model, clip),
        {**unet, **encoders},
        encoders.keys(),
        clip is not None,
        host.patches,
        host.swap_halves,
        model is not None,
    )


@dataclass(slots=True, eq=False)
class Applied:
    """Models with the LoRAs of rows on them.

    Attributes:
        model: The diffusion model, or None.
        clip: The text encoders, or None.
        told: The name and the lines of each LoRA; see `applied_lines`.
        notes: Lines besides.
    """

    model: Any
    clip: Any
    told: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    notes: list[str] = field(default_factory=list[str])


def apply_rows(model: Any, clip: Any, rows: Sequence[Row]) -> Applied:
    """Return clones with the LoRAs of all rows on them.

    A row whose strengths are 0 for what is connected is not looked at.

    Args:
        model: The diffusion model, or None.
        clip: The text encoders, or None.
        rows: In order.

    Raises:
        FileNotFoundError: A file is not in models/loras.
        LoraOpsError: As for `apply`; names the row.
    """
    from ...lora_ops import LoraOpsError

    made = Applied(model, clip)
    wanted = [
        row for row in rows if (model is not None and row[1]) or (clip is not None and row[2])
    ]
    before = host.notes(model, _ROWS) if model is not None else ()
    twice = dict.fromkeys(row[0] for row in wanted if any(row is one for one, _ in before))
    made.notes += [
        f"{WARNS}{name}: is on this model already, by the loader that the stack comes from, and now "
        "twice; connect that loader's model or its stack, not both"
        for name in twice
    ]
    progress, loras = host.progress(), list[LoraModel]()
    for at, row in enumerate(wanted):
        name, *strengths = row
        progress(at, len(wanted), name)
        try:
            lora = read_once(host.file_path(name, host.LORAS))
            made.model, made.clip, lines = apply(
                made.model, made.clip, lora, (strengths[0], strengths[1]), row.blocks
            )
        except LoraOpsError as error:
            message = f"the row of `{name}`: {error.args[0]}"
            raise type(error)(message, target=error.target, path=error.path) from error
        made.told.append((lora.name, lines))
        loras.append(lora)
    if model is not None and wanted:
        host.noted(made.model, _ROWS, tuple(zip(wanted, loras, strict=True)))
    return made


def check_any(file: MemoryFile, matched: Matched) -> None:
    """Refuse an adapter of which nothing fits.

    Raises:
        MismatchError: That is so; says why.
    """
    from ...lora_ops import MismatchError, describe
    from ...lora_ops.report import counted

    if matched.patches:
        return
    told = "; ".join(f"{counted(len(names), 'layer')}: {why}" for why, names in summary(matched))
    model = describe(file).architecture
    kind = f", which is for {model}," if model else ""
    raise MismatchError(
        f"nothing of `{file.name}`{kind} fits this model, so it would do nothing: {told}"
    )
