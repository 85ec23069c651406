"""The recipe of a merge: which files, in which steps, with which weights. Pure data.

A recipe names files and never says where they lie; it is written as TOML or JSON (`document`), as a
line (`expression`), or read from what other programs leave behind (`foreign`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....adapters.layers import Convention
from ....errors import ArgumentError
from ....models.pairing import nearest
from ....text import plain
from .arithmetic import Amount, parse_amount
from .places import Place

#: The version of the format, which every document states.
FORMAT = 1

#: A number, text with names for numbers, or a gradient: numbers at equal distances over the depth.
Weight = Amount | tuple[Amount, ...]
#: What a method may be given.
Value = bool | Amount | tuple[Amount, ...]

SPARSIFIERS = ("none", "magnitude", "dare", "della", "breadcrumbs")
LEGACY = ("supermerger", "chattiori", "model_mixer", "mergekit", "mecha")
PARTS = ("unet", "te", "te1", "te2", "te3", "vae")
KINDS = ("checkpoint", "lora")
#: What is an error unless a recipe, or whoever runs it, allows it.
ALLOWED = ("partial", "nonfinite")
#: What a step and a term have of their own: no parameter of a method has such a name.
STEP_KEYS = ("name", "method", "base", "terms", "sparsify", "legacy", "seed", "measured")
TERM_KEYS = ("of", "minus", "weight", "blocks", "where", "elemental")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file that goes in.

    Attributes:
        name: Its name, without folders.
        sha256: Of all of it, 64 hexadecimal digits; empty where it is not known.
        url: Where it can be had.
        kind: `checkpoint` or `lora`, which the file must be; empty: told by what is in it.
        part: Only this component of it is read; empty for all.
        bytes: Its size; None where it is not known.
    """

    name: str
    sha256: str = ""
    url: str = ""
    kind: str = ""
    part: str = ""
    bytes: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Term:
    """What is added, and how much of it.

    Attributes:
        of: A file or an earlier step.
        minus: What is taken from it, so that the term is their difference; empty for nothing.
        weight: Its share; a gradient gives one by depth.
        blocks: Factors by block, as everywhere (docs/blocks.md).
        where: `PATTERN=S`, in order; the last that fits decides.
        elemental: supermerger's `BLOCKS:ELEMENTS:RATIO`; with `legacy` only.
        parameters: What the method is given for this term.
    """

    of: str
    minus: str = ""
    weight: Weight = 1.0
    blocks: str = ""
    where: tuple[str, ...] = ()
    elemental: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, slots=True)
class Step:
    """One combination of terms.

    Attributes:
        name: What later steps call it.
        terms: What is combined.
        method: How; a name of the table of methods.
        base: What the terms are changes of: a file or an earlier step; empty for none.
        sparsify: How the changes are thinned before.
        legacy: The program whose deviating meaning of the method is meant; empty for the definition.
        seed: Of random masks; None where none was given.
        parameters: What the method is given.
        measured: What it did when it was run: numbers by name.
        place: Where it is in the document that it was read from, for messages; None for none.
    """

    name: str
    terms: tuple[Term, ...]
    method: str = "sum"
    base: str = ""
    sparsify: str = "none"
    legacy: str = ""
    seed: int | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict[str, Value])
    measured: Mapping[str, float] = field(default_factory=dict[str, float], compare=False)
    place: Place | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Output:
    """What is written.

    Attributes:
        dtype: By component; `all` is for what is not named. Empty: as the base stores it.
        to: The way in which the diffusion model's matrices are stored: `fp8_scaled`; empty: as the base
            stores them, or as `dtype` says.
        whole: Shell patterns of native names of those that are numbers nevertheless.
        quantise: Of those that `to` would usually leave whole, and that are not to stay so.
        rounding: `nearest` or `stochastic`.
        format: `single`, `sharded`, `diffusers`, or a number of bytes a shard (`8GB`); empty: by name.
        kind: `checkpoint` or `lora`; empty: what the last step is.
        rank: Of a LoRA; a rule, as everywhere. None for none.
        keep: Whether the flags of v-prediction stay: `auto`, `on` or `off`.
        dora: Whose reading of the kinds on which programs differ, `paper` or `comfy` (docs/kinds.md).
        allow: What is no error: `partial`, that LoRAs have layers which the base has no weight for;
            `nonfinite`, that weights of some model are not finite: the base's are kept there.
    """

    dtype: Mapping[str, str] = field(default_factory=dict[str, str])
    to: str = ""
    whole: tuple[str, ...] = ()
    quantise: tuple[str, ...] = ()
    rounding: str = "nearest"
    format: str = ""
    kind: str = ""
    rank: int | str | None = None
    keep: str = "auto"
    dora: Convention = "paper"
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge as a document. `check` in `checks` says whether it means something.

    Attributes:
        steps: In order; the last one is the result.
        files: By the name that the steps use.
        title: For people.
        parts: Which step or file gives a component, where it is not the last step.
        output: What is written.
    """

    steps: tuple[Step, ...]
    files: Mapping[str, RecipeFile] = field(default_factory=dict[str, RecipeFile])
    title: str = ""
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    output: Output = field(default_factory=Output)

    @property
    def values(self) -> tuple[str, ...]:
        """The names that stand for numbers, without their `$`, in order."""
        found: dict[str, None] = {}

        def note(amount: Amount) -> Amount:
            if isinstance(amount, str):
                found.update(dict.fromkeys(sorted(parse_amount(amount).names)))
            return amount

        _mapped(self, note)
        return tuple(found)

    def with_output(
        self,
        *,
        dtype: str | Mapping[str, str] = "",
        rounding: str = "",
        keep: str = "",
        to: str = "",
        whole: Sequence[str] = (),
        quantise: Sequence[str] = (),
    ) -> Recipe:
        """Return the recipe with another output; what is not given stays.

        Args:
            dtype: `fp32`, `fp16` or `bf16`; by component `{"vae": "fp32", "all": "fp16"}`.
            rounding: `nearest` or `stochastic`.
            keep: Whether the flags of v-prediction stay: `auto` (as the base has them), `on`, `off`.
            to: How the diffusion model's matrices are stored; see `Output`.
            whole: See there.
            quantise: See there.
        """
        dtypes = {"all": dtype} if dtype and isinstance(dtype, str) else dict(dtype or {})
        output = replace(
            self.output,
            dtype=dtypes or self.output.dtype,
            rounding=rounding or self.output.rounding,
            keep=keep or self.output.keep,
            to=to or self.output.to,
            whole=tuple(whole) or self.output.whole,
            quantise=tuple(quantise) or self.output.quantise,
        )
        return replace(self, output=output)

    def bind(self, values: Mapping[str, float]) -> Recipe:
        """Return the recipe with numbers in place of names.

        Args:
            values: A finite number for each name, without its `$`.

        Raises:
            ArgumentError: A name that the recipe lacks, one without a value, or no finite number.
        """
        names = self.values
        for name, value in values.items():
            if name not in names:
                raise ArgumentError(
                    f"the recipe has no `${plain(name)}`; nearest: {nearest(name, names)}"
                )
            if not math.isfinite(value):
                raise ArgumentError(f"`${name}` is {value}, not a finite number")
        missing = [f"`${name}`" for name in names if name not in values]
        if missing:
            raise ArgumentError(f"no value for {', '.join(missing)}; give a number for each")

        def number(amount: Amount) -> Amount:
            if not isinstance(amount, str):
                return amount
            bound = parse_amount(amount).bound(values)
            if not math.isfinite(bound):
                raise ArgumentError(f"`{amount}` is {bound} with these values")
            return bound

        return _mapped(self, number)


def is_amount(value: object) -> bool:
    """Whether it stands for a number: one, or text with `$`."""
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and "$" in value
    )


def _mapped(recipe: Recipe, function: Callable[[Amount], Amount]) -> Recipe:
    """The recipe with every amount in it mapped."""

    def of(value: Weight) -> Weight:
        return tuple(map(function, value)) if isinstance(value, tuple) else function(value)

    def all_of(values: Mapping[str, Value]) -> dict[str, Value]:
        return {
            key: of(value)
            if not isinstance(value, bool) and (isinstance(value, tuple) or is_amount(value))
            else value
            for key, value in values.items()
        }

    def step(one: Step) -> Step:
        terms = [
            replace(term, weight=of(term.weight), parameters=all_of(term.parameters))
            for term in one.terms
        ]
        return replace(one, terms=tuple(terms), parameters=all_of(one.parameters))

    return replace(recipe, steps=tuple(map(step, recipe.steps)))
