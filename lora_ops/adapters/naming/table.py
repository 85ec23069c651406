"""The formats: how an adapter file names its tensors. Data, and the questions it answers."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Format:
    """One naming scheme.

    Attributes:
        name: What the user calls it.
        prefixes: What its module names begin with; () for the format of all other names.
        up, down: Suffixes of the two factors.
        tucker: Suffixes of up, down and mid of a layer in Tucker's form; loaders know one only.
        writable: Whether lorakit writes it.
        holds_full: Whether it has a place for full differences of norms, biases and tables.
        needs_alpha: Whether its tools fail without an alpha; rank is then written, which is scale 1.
        keeps_alpha: Whether its loaders read an alpha.
    """

    name: str
    prefixes: tuple[str, ...]
    up: str
    down: str
    tucker: tuple[str, str, str] = (".lora_up.weight", ".lora_down.weight", ".lora_mid.weight")
    writable: bool = False
    holds_full: bool = False
    needs_alpha: bool = False
    keeps_alpha: bool = False


KOHYA = Format(
    name="kohya",
    prefixes=("lora_unet_", "lora_te", "lora_prior_", "lora_transformer_", "lycoris_"),
    up=".lora_up.weight",
    down=".lora_down.weight",
    writable=True,
    needs_alpha=True,
    keeps_alpha=True,
)
COMFY = Format(
    name="comfy",
    prefixes=("diffusion_model.", "model.diffusion_model.", "text_encoders."),
    up=".lora_B.weight",
    down=".lora_A.weight",
    writable=True,
    holds_full=True,
    keeps_alpha=True,
)
DIFFUSERS = Format(
    name="diffusers",
    prefixes=(
        *("unet.", "transformer.", "transformer_2."),
        *("text_encoder.", "text_encoder_2.", "text_encoder_3."),
        *("down_blocks.", "mid_block.", "up_blocks."),
        *("transformer_blocks.", "single_transformer_blocks."),
    ),
    up=".lora_B.weight",
    down=".lora_A.weight",
)
# PEFT alone writes `base_model.model.`; a bare module name is what remains when it is taken off.
PEFT = Format(
    name="peft",
    prefixes=("base_model.model.",),
    up=".lora_B.weight",
    down=".lora_A.weight",
)
# A ControlNet as what it adds to the UNet that it was made from: no other format holds one.
CONTROL = Format(name="control-lora", prefixes=(), up=".up", down=".down")

FORMATS: tuple[Format, ...] = (KOHYA, COMFY, PEFT, DIFFUSERS)


def writable(name: str) -> Format:
    """Return the format of that name.

    Raises:
        ArgumentError: There is no such format, or lorakit only reads it.
    """
    offered = [known for known in FORMATS if known.writable]
    for known in offered:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in offered)
    raise ArgumentError(f"format `{name}` cannot be written; choose one of {names}")


def format_named(name: str) -> Format:
    """Return the format of that name, of those that are read.

    Raises:
        ArgumentError: There is no such format.
    """
    offered = (*FORMATS, CONTROL)
    for known in offered:
        if known.name == name:
            return known
    names = ", ".join(known.name for known in offered)
    raise ArgumentError(f"unknown format `{name}`; it is one of {names}")
