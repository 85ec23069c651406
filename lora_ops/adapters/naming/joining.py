"""Names across files: which modules of two adapters change one weight, and how the other spells it.

`flat_name` makes one name of dots and underscores. What it leaves apart is joined here: the two
names of a Stable Diffusion UNet's blocks, and the prefixes of a text encoder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from ...models.architectures import (
    TE,
    UNET,
    Architecture,
    UnetNames,
    layout_names,
    naming,
    unet_names,
)
from .names import INSIDE, NATIVE_PREFIXES, encoder_layer, flat_name, underscored
from .table import COMFY, CONTROL, DIFFUSERS, FORMATS, KOHYA, PEFT, Format

Respell = Callable[[str], "str | None"]

# The original's names of the layers in a residual block.
_RESIDUAL = (
    *("in_layers.0", "in_layers.2", "emb_layers.1"),
    *("out_layers.0", "out_layers.3", "skip_connection"),
)
_ENCODER = r"^te\d:(?:\w*?transformer_)?"
# Applied to flattened names in this order. An encoder that is no CLIP is told by its layers: its
# number differs between models (T5 is the second encoder of Flux and the third of SD3).
_ENCODERS = (
    (re.compile(_ENCODER + "encoder_block_"), "t5:encoder_block_"),
    (re.compile(_ENCODER + "(?:model_)?(?:language_model_)?layers_"), "llm:layers_"),
    (re.compile("^te3:clip_[lh]_transformer_"), "te1:"),
    (re.compile(r"^(te\d:)text_model_"), r"\1"),
)
# The attention processors of diffusers before 0.22 had the layers under themselves.
PROCESSORS = (
    (re.compile(r"([._])processor[._]to_out$"), r"\1to_out\g<1>0"),
    (re.compile(r"([._])processor[._]to_"), r"\1to_"),
)
# Upsamplers stand behind the attention of their block. In the deepest level only SDXL has one.
_ATTENTION = ("up_blocks.1.attentions.2.", "up_blocks.2.attentions.2.")
_DEEPEST = "up_blocks.0.attentions.2."
# By encoder: what diffusers calls it, and kohya where the architecture does not say.
_DIFFUSERS_TE = {
    "clip_l": "text_encoder.",
    "clip_h": "text_encoder.",
    "clip_g": "text_encoder_2.",
}
_KOHYA_TE = {
    "clip_l": "lora_te1_",
    "clip_h": "lora_te_",
    "clip_g": "lora_te2_",
    "t5xxl": "lora_te3_",
    "hydit_clip": "lora_te1_",
}


def _flat_blocks(table: UnetNames) -> dict[str, str]:
    """Diffusers' name of a module by each of its other names, all with underscores."""
    blocks: dict[str, str] = {}
    for native, diffusers in table.native.items():
        blocks[underscored(native)] = underscored(diffusers)
        if ".resnets." in diffusers:
            for part in _RESIDUAL:
                name = f"{native}.{part}"
                blocks[underscored(name)] = underscored(table.to_diffusers(name) or name)
    for diffusers, native in table.diffusers.items():
        blocks[underscored(diffusers)] = blocks[underscored(native)]
    return blocks


_BLOCKS = _flat_blocks(unet_names())


def spelling_key(module: str) -> str:
    """Return the key that all spellings of one target share, in any format.

    Blocks of a UNet are matched by the layout of Stable Diffusion 1, 2 and XL: two residual blocks
    a level. The key is for comparing: it is not a name that any file has.
    """
    flat = flat_name(module)
    for pattern, to in _ENCODERS:
        flat = pattern.sub(to, flat)
    for pattern, to in PROCESSORS:
        flat = pattern.sub(to, flat)
    parts = flat.split("_")
    for length in range(len(parts), 0, -1):
        block = _BLOCKS.get("_".join(parts[:length]))
        if block is not None:
            return "_".join([block, *parts[length:]])
    return flat


def spelling_keys(modules: Iterable[str]) -> dict[str, str]:
    """Return the `spelling_key` of each module of one file, by module.

    Two modules of a file that would share a key keep their own names instead, so that both stay.
    """
    keys = {module: spelling_key(module) for module in modules}
    often = Counter(keys.values())
    return {module: key if often[key] == 1 else module for module, key in keys.items()}


def format_of(module: str) -> Format:
    """Return the format whose prefix a module name has; a bare name is PEFT's."""
    return next((known for known in FORMATS if module.startswith(known.prefixes)), PEFT)


def respeller(
    format: Format,
    known: Mapping[str, str] | None = None,
    architecture: Architecture | None = None,
) -> Respell:
    """Return the function that gives a module's name in another format.

    It returns None where that format has no name for the module: a kohya name that is not among
    the ``known`` ones has lost its dots, and diffusers knows its own names of models only.

    Args:
        format: The format to name modules in; names that are in it already stay.
        known: Dotted module name by `spelling_key`: of a checkpoint's targets, or of another adapter.
        architecture: Whose names kohya's scripts use; None: the original ones.
    """
    names = dict(known or {})
    clip = "clip_h" if architecture is not None and architecture.v2 else "clip_l"
    deepest = any(key.startswith(underscored(_DEEPEST)) for key in names)
    layout = None if architecture is None else architecture.layout
    table = (
        unet_names([*_ATTENTION, *([_DEEPEST] if deepest else [])])
        if layout is None
        else layout_names(layout)
    )
    spellings: dict[str, Respell] = {
        KOHYA.name: lambda target: _kohya(target, table, architecture),
        COMFY.name: _comfy,
        DIFFUSERS.name: lambda target: _diffusers(target, table),
        PEFT.name: lambda target: _peft(target, table),
        CONTROL.name: lambda target: target.removeprefix(UNET),
    }
    spell = spellings[format.name]

    def respell(module: str) -> str | None:
        if module.startswith(f"model.{UNET}"):  # a checkpoint's own prefix, which no loader expects
            module = module.removeprefix("model.")
        if format_of(module) == format:
            return module
        dotted = names.get(spelling_key(module), module)
        if format_of(dotted) == KOHYA:
            return None
        return dotted if format_of(dotted) == format else spell(_target(dotted, table, clip))

    return respell


def _inner(module: str) -> str:
    prefix = max((p for p in NATIVE_PREFIXES if module.startswith(p)), key=len)
    return module.removeprefix(prefix)


def _target(module: str, table: UnetNames, clip: str) -> str:
    """The canonical name of a dotted module: native, with ComfyUI's component in front."""
    if module.startswith((TE, "vae.", "transformer_2.")):
        return module
    if module.startswith("text_encoder"):
        prefix, _, inner = module.partition(".")
        return encoder_target(prefix == "text_encoder_2", inner, clip)
    inner = _inner(module)
    if module.removesuffix(inner).endswith(UNET):
        return UNET + inner
    for pattern, to in PROCESSORS:
        inner = pattern.sub(to, inner)
    native = table.to_native(inner)
    if native is not None:
        return UNET + native
    # Flux, SD3 and others have such blocks in diffusers alone; ComfyUI finds them by this prefix.
    foreign = inner.startswith("transformer_blocks.") or naming([f"{inner}."]) == "diffusers"
    return ("transformer." if foreign else UNET) + inner


def encoder_target(second: bool, inner: str, clip: str) -> str:
    """Return the canonical target of a text encoder's module.

    Args:
        second: Whether it is the module of a second encoder.
        inner: Its dotted name there.
        clip: The name of a first encoder that is a CLIP: clip_l, clip_h, ....
    """
    if inner.startswith("encoder.block."):
        return f"{TE}t5xxl{INSIDE}{inner}"
    if inner.startswith(("model.", "layers.", "language_model.")):
        return f"{TE}transformer.{inner}"
    if inner.startswith("bert."):
        return f"{TE}hydit_clip{INSIDE}{inner}"
    if inner.startswith("encoder.layers."):
        inner = f"text_model.{inner}"
    return f"{TE}{'clip_g' if second else clip}{INSIDE}{inner}"


def kohya_encoder(target: str, architecture: Architecture | None) -> str:
    """Return what kohya's scripts call a text encoder's target."""
    kohya = architecture.kohya if architecture is not None else None
    encoder, _, inner = target.removeprefix(TE).partition(INSIDE)
    prefixes = {**_KOHYA_TE, **(kohya.encoders if kohya is not None else {})}
    if not inner:
        encoder, inner = "", target.removeprefix(TE + "transformer.")
    return prefixes.get(encoder, "lora_te_") + encoder_layer(inner)


def diffusers_encoder(target: str) -> str | None:
    """Return what diffusers calls a text encoder's target; None for any but a CLIP's."""
    encoder, _, inner = target.removeprefix(TE).partition(INSIDE)
    return _DIFFUSERS_TE[encoder] + inner if inner and encoder in _DIFFUSERS_TE else None


def _comfy(target: str) -> str | None:
    return None if target.startswith("transformer_2.") else target


def _kohya(target: str, table: UnetNames, architecture: Architecture | None) -> str | None:
    kohya = architecture.kohya if architecture is not None else None
    if target.startswith(TE):
        return kohya_encoder(target, architecture)
    if target.startswith(("vae.", "transformer_2.")):
        return None
    inner = _inner(target)
    if kohya is not None and kohya.unet == "diffusers":
        inner = table.to_diffusers(inner) or inner
    return "lora_unet_" + underscored(inner)


def _diffusers(target: str, table: UnetNames) -> str | None:
    if target.startswith(TE):
        return diffusers_encoder(target)
    if target.startswith(("transformer.", "transformer_2.")):
        return target
    diffusers = table.to_diffusers(target.removeprefix(UNET))
    return None if diffusers is None else f"unet.{diffusers}"


def _peft(target: str, table: UnetNames) -> str | None:
    """A PEFT file is of one component: only a diffusion model's modules have a name in it."""
    if target.startswith((TE, "vae.", "transformer_2.")):
        return None
    inner = _inner(target)
    return "base_model.model." + (table.to_diffusers(inner) or inner)
