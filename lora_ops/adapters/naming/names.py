"""Module names: from a target to what a file calls it, and back by looking forward.

A kohya name has lost its dots: it cannot be turned back, only found again among the names that the
targets of a model would get.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator

from ...errors import ArgumentError, UnsupportedLayerError
from ...models.architectures import ARCHITECTURES, TE, UNET, Architecture, UnetNames, unet_names
from .suffixes import BIAS
from .table import COMFY, PEFT, Format, writable

INSIDE = ".transformer."

# What loaders take before a module's own name. ComfyUI's `lora_unet__` is Wan-Fun's misspelling;
# `pipe.dit.` is DiffSynth-Studio's.
_PEFT = PEFT.prefixes[0]
OF_TRANSFORMER = ("transformer.", f"{_PEFT}transformer.")
_DOTTED = ("", *OF_TRANSFORMER, "unet.", _PEFT, f"unet.{_PEFT}", "pipe.dit.")
NATIVE_PREFIXES = (UNET, "model.diffusion_model.", "base_model.model.diffusion_model.", *_DOTTED)
FLAT_PREFIXES = (
    *("lora_unet_", "lora_unet__", "lora_prior_unet_"),
    *("lycoris_", "lora_transformer_"),
)
# Prefixes by encoder: kohya's, then those with dots.
_ENCODERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "clip_l": (("lora_te_", "lora_te1_"), ("text_encoder.",)),
    "clip_h": (("lora_te_", "lora_te1_"), ("text_encoder.",)),
    "clip_g": (("lora_te2_",), ("text_encoder_2.",)),
    "hydit_clip": (("lora_te1_",), ("text_encoder.",)),
    "t5xxl": (("lora_te2_", "lora_te3_"), ("text_encoder_2.", "text_encoder_3.")),
}
# First parts of an encoder's own names that kohya's names leave out.
LEFT_OUT = ("model.", "bert.")
# First parts of a whole language model's names, which a checkpoint of its body alone lacks.
_BODIES = (
    *("model.", "transformer.", "text_model.", "bert.", "distilbert.", "roberta.", "electra."),
    *("albert.", "deberta.", "vit.", "gpt_neox.", "language_model."),
)
# Loaders know the layers of an encoder under kohya's names, not its embeddings.
_KOHYA_TE = ("text_model.encoder.layers.", "encoder.block.")
_LONE_CLIP_G = (("lora_te_", "lora_te2_"), ("text_encoder.", "text_encoder_2."))

# For recognition only: prefixes of any first encoder, of any second one, of any other.
_TE_PREFIXES = (
    (
        "te1:",
        (
            "lora_te_",
            "lora_te1_",
            "lora_prior_te_",
            "text_encoder.",
            "text_encoders.clip_l.transformer.",
        ),
    ),
    ("te2:", ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.transformer.")),
    ("te3:", ("lora_te3_", "text_encoder_3.", "text_encoders.")),
)

# What replaces a text encoder's prefix in a flattened name. Of these the first that fits counts, of
# a diffusion model's prefixes the longest.
_SHORTENED = {prefix: number for number, prefixes in _TE_PREFIXES for prefix in prefixes}
_PREFIX = re.compile(
    "|".join(
        re.escape(prefix)
        for prefix in (
            *_SHORTENED,
            *sorted((*FLAT_PREFIXES, *NATIVE_PREFIXES), key=len, reverse=True),
        )
    )
)

# Layers of a language model, in a file of it alone.
_LLM = re.compile(r"model_(language_model_)?layers_\d+_(self_attn|mlp)_")

_PARTS = (UNET, TE, "transformer.", "unet.", "vae.")
# ComfyUI has no name for a text encoder's parameter that is a single number.
_UNREACHABLE = (".logit_scale",)

Namer = Callable[[str], str]


def module_namer(
    format: Format, architecture: Architecture | None = None, names: Iterable[str] = ()
) -> Namer:
    """Return the function that gives a target's module name in a file of this format.

    Args:
        format: One that can be written.
        architecture: Needed by kohya, whose names depend on it.
        names: All canonical parameter names of the checkpoint: the layout of a UNet is read off
            them. Without them it is that of Stable Diffusion.

    Raises:
        ArgumentError: The format is not offered for this architecture.
        UnsupportedLayerError: By the function returned: the format has no name for this target.
    """
    if writable(format.name) == COMFY:
        return _comfy_name
    if architecture is None or architecture.kohya is None:
        what = "an unknown architecture" if architecture is None else architecture.title
        offered = ", ".join(one.title for one in ARCHITECTURES if one.kohya is not None)
        raise ArgumentError(
            f"format `{format.name}` is not offered for {what}, only for {offered}; "
            "use format `comfy`, which holds any model"
        )
    table = unet_names(_inside_unet(names)) if architecture.kohya.unet == "diffusers" else None
    encoders = {f"{TE}{name}{INSIDE}": to for name, to in architecture.kohya.encoders.items()}
    title = architecture.title

    def kohya_name(target: str) -> str:
        for root, prefix in encoders.items():
            inner = target.removeprefix(root)
            if inner != target and inner.startswith(_KOHYA_TE):
                return prefix + underscored(inner)
        inner = target.removeprefix(UNET) if target.startswith(UNET) else None
        if inner is not None and table is not None:
            inner = table.to_diffusers(inner)
        if inner is None:
            raise UnsupportedLayerError(
                f"format `{format.name}` has no name for `{target}` of {title}; "
                "use format `comfy`, or leave it out",
                target=target,
            )
        return "lora_unet_" + underscored(inner)

    return kohya_name


def resolve(modules: Iterable[str], targets: Collection[str]) -> dict[str, str]:
    """Return the target of each module name that one of the ``targets`` would be called.

    Args:
        modules: Module names as they stand in a file, of any format.
        targets: Canonical targets of the checkpoint, all of them, so that the layout of a UNet is
            known.

    Returns:
        Target by module name. A name that no target has, or that two have, is not there.
    """
    known: dict[str, str | None] = {}
    spell = _spellings(targets)
    for target in targets:
        for name in spell(target):
            known[name] = target if known.get(name, target) == target else None
    found: dict[str, str] = {}
    for module in modules:
        bias = BIAS if module.endswith(BIAS) and module not in known else ""
        target = known.get(module.removesuffix(bias))
        if target is not None:
            found[module] = target + bias
    return found


def component(module: str) -> str:
    """Say whether a module name in an adapter file is the text encoder's (te) or the unet's."""
    te = module.startswith(("lora_te", "lora_prior_te", "text_encoder"))
    return "te" if te or _LLM.match(flat_name(module)) else "unet"


def flat_name(module: str) -> str:
    """Return a module name without its prefix and with underscores for dots.

    Names of text encoders begin with ``te1:`` (any first one), ``te2:`` or ``te3:`` instead.
    """
    found = _PREFIX.match(module)
    prefix = found[0] if found is not None else ""
    return _SHORTENED.get(prefix, "") + underscored(module[len(prefix) :])


def within(target: str) -> str:
    """Return what a text encoder's own model calls a target."""
    rest, lone = target.removeprefix(TE), INSIDE.removeprefix(".")
    return rest.removeprefix(lone) if rest.startswith(lone) else rest.partition(INSIDE)[2]


def underscored(name: str) -> str:
    """Return a dotted name as kohya's scripts spell it, without prefix."""
    return name.replace(".", "_")


def encoder_layer(inner: str) -> str:
    """Return a text encoder's dotted name as kohya's scripts spell it, without prefix."""
    for root in LEFT_OUT:
        inner = inner.removeprefix(root)
    return underscored(inner)


def _inside_unet(names: Iterable[str]) -> list[str]:
    return [name.removeprefix(UNET) for name in names if name.startswith(UNET)]


def _comfy_name(target: str) -> str:
    if target.startswith(_PARTS) and not target.endswith(_UNREACHABLE):
        return target
    raise UnsupportedLayerError(
        f"format `comfy` has no place for `{target}`, which no key of an adapter can reach; "
        "leave it out",
        target=target,
    )


def _spellings(targets: Collection[str]) -> Callable[[str], Iterator[str]]:
    """The function that gives every name of a target that some loader knows."""
    inside = _inside_unet(targets)
    table = unet_names(inside) if any(name.startswith("input_blocks.") for name in inside) else None
    encoders = dict(_ENCODERS)
    if not any(target.startswith(f"{TE}clip_l.") for target in targets):
        encoders["clip_g"] = _LONE_CLIP_G

    def spell(target: str) -> Iterator[str]:
        yield target
        if target.startswith(TE):
            encoder, _, inner = target.removeprefix(TE).partition(INSIDE)
            # Loaders leave an encoder's name out if it is no CLIP; a language model has kohya's first prefix.
            other = (("lora_te_",), ()) if inner.startswith("model.") else ((), ())
            flat, dotted = encoders.get(encoder, other)
            if inner and not encoder.startswith("clip_"):
                yield TE + INSIDE.removeprefix(".") + inner
            yield from (prefix + encoder_layer(inner) for prefix in flat if inner)
            yield from (prefix + inner for prefix in dotted if inner)
            yield from _of_peft(within(target))
        else:
            for root in (UNET, "transformer.", "unet."):
                if target.startswith(root):
                    yield from _of_unet(target.removeprefix(root), table)

    return spell


def _of_peft(name: str) -> Iterator[str]:
    """Names in a PEFT file, which may be trained on the model, on its body, or on what holds it."""
    yield _PEFT + name
    body = next((body for body in _BODIES if name.startswith(body)), None)
    if body is not None:
        yield _PEFT + name.removeprefix(body)
    else:
        yield from (f"{_PEFT}{body}{name}" for body in _BODIES)


def _of_unet(name: str, table: UnetNames | None) -> Iterator[str]:
    yield from (prefix + name for prefix in NATIVE_PREFIXES)
    yield from (prefix + underscored(name) for prefix in FLAT_PREFIXES)
    diffusers = table.to_diffusers(name) if table is not None else None
    if diffusers is None:
        return
    yield from (prefix + diffusers for prefix in _DOTTED)
    yield from (prefix + underscored(diffusers) for prefix in FLAT_PREFIXES)
    # The attention processors of diffusers before 0.22 had the layers under themselves.
    processor = diffusers.replace(".to_", ".processor.to_").removesuffix(".0")
    if processor != diffusers:
        yield from (prefix + processor for prefix in _DOTTED)
