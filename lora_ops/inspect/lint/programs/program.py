"""How a program reads an adapter: data. What the words mean, `reading` knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AlphaLaw = Literal["read", "needed", "refused", "ignored"]

#: Suffix of up, and that of down which goes with it.
PAIRS = {
    ".lora_up.weight": ".lora_down.weight",
    "_lora.up.weight": "_lora.down.weight",
    ".lora_B.weight": ".lora_A.weight",
    ".lora.up.weight": ".lora.down.weight",
    ".lora_B": ".lora_A",
    ".lora_linear_layer.up.weight": ".lora_linear_layer.down.weight",
    ".lora_B.default.weight": ".lora_A.default.weight",
}
#: The same of a Control-LoRA.
CONTROL_PAIRS = {".up": ".down"}
#: The layers of a CLIP that trainers adapt, dotted and flat.
CLIP = r"text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.([qkv]|out)_proj)"
CLIP_FLAT = CLIP.replace(r"\.", "_")


@dataclass(frozen=True, slots=True)
class Scheme:
    """Names of modules that a program knows.

    Attributes:
        prefix: What the names begin with.
        names: What follows: the model's own name (native), that of diffusers (foreign), that of
            diffusers with `processor` (processor), a text encoder's own name (encoder), or whatever
            ``only`` allows (any).
        flat: Whether dots are underscores.
        of: Short names of the architectures it is for; () all.
        only: Regular expression of the whole remainder; empty for no limit.
        but: Regular expression, looked for in the remainder, of what it does not know.
        needs: Keys that the file must have for it.
    """

    prefix: str
    names: Literal["native", "foreign", "processor", "encoder", "any"]
    flat: bool = False
    of: tuple[str, ...] = ()
    only: str = ""
    but: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocks:
    """Numbered blocks that a program needs complete: a missing layer ends loading with an error.

    Attributes:
        prefix: What the names in a block begin with, `{}` for its number.
        modules: What follows, of all that each block must hold.
        count: How many blocks there must be; 0: as many as the file has different numbers.
        where: Only for a file that has a key to fit each of these regular expressions.
    """

    prefix: str
    modules: tuple[str, ...]
    count: int = 0
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One way of a program's loader through a file.

    Attributes:
        schemes: Names of modules.
        pairs: Suffixes of up that it knows; see `PAIRS`.
        kinds: Kinds of layer that it knows.
        ignores: Roles that it leaves out without a word: mid, magnitude, dora_scale, ….
        alpha: What it does with alphas: reads them, stops where one is missing or left over, or
            passes over them.
        strict: What ends loading with an error: nothing, a key that makes no pair (keys), or also a
            pair of a name that it does not know (all).
        needs_lora: Whether it refuses a file in which a key does not have `lora` in it.
        when: Regular expression that some key must fit: the first route that fits is taken.
        besides: A second one, that some key must fit as well.
        every: Regular expression that every key must fit.
        drops: Regular expression of keys that are left out without harm to the rest.
        refuses: Regular expression of keys that end loading with an error.
        asks: Regular expressions that some key must fit, by what they look for; else loading fails.
        common_alpha: Regular expression of modules that get the commonest alpha of the file instead
            of their own; so do those without one. Empty: there are no such modules.
        bounded: Kinds that it fails on where they have no alpha.
        up_bias: Whether it reads the bias of up, which PEFT can train.
        biases: Regular expression of keys of whole differences that it reads all the same.
        float_alphas: Whether it stops at an alpha stored as an integer.
        configured: Whether it reads scales from the PEFT configuration in the metadata.
        blocks: Blocks that must be complete.
        spelling: The old spelling that a file must have for this route; None for any file.
        ends_beside: Endings of whole parameters beside a Control-LoRA's factors that it passes over.
    """

    schemes: tuple[Scheme, ...]
    pairs: tuple[str, ...]
    kinds: tuple[str, ...] = ("lora",)
    ignores: tuple[str, ...] = ()
    alpha: AlphaLaw = "read"
    strict: Literal["", "keys", "all"] = ""
    needs_lora: bool = False
    when: str = ""
    besides: str = ""
    every: str = ""
    drops: str = ""
    refuses: str = ""
    asks: Mapping[str, str] = field(default_factory=dict[str, str])
    common_alpha: str = ""
    bounded: tuple[str, ...] = ()
    up_bias: bool = False
    biases: str = "$^"
    float_alphas: bool = False
    configured: bool = False
    blocks: tuple[Blocks, ...] = ()
    spelling: str = ""
    ends_beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """One program.

    Attributes:
        name: What the user calls it.
        title: Its name in sentences, with the version that the tables are of.
        format: The one to write for it.
        routes: By short name of an architecture, the ways through its loader; "" for all others.
        stops: Whether a layer without its second factor ends loading with an error.
        quirks: By kind, what it does to the strength; `dora` for magnitudes over a kind.
        legacy: Spellings of the past that it reads; see `files.legacy`.
        control: The way of Control-LoRAs; None for a program that does not read them.
    """

    name: str
    title: str
    format: str
    routes: dict[str, tuple[Route, ...]]
    stops: bool
    quirks: tuple[tuple[str, str], ...] = ()
    legacy: tuple[str, ...] = ()
    control: Route | None = None

    def routes_of(self, architecture: str | None) -> tuple[Route, ...]:
        """The ways for a model; () for one that it does not run, or has no loader for."""
        return self.routes.get(architecture or "", self.routes.get("", ()))
