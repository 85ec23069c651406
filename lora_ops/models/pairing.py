"""Pairing two checkpoints: which weights of base and tuned belong together, from headers alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import ArgumentError, FormatError, MismatchError, TargetMismatchError
from ..source import TensorSource
from .architectures import TABLES, Architecture, Parameter, detect, naming, parameters

COMPONENTS = ("unet", "te", "vae")
COMPONENT_TITLES = {
    "unet": "diffusion model",
    "te": "text encoder",
    "vae": "VAE",
    "other": "rest",
}
# Share of the weights that must be found on both sides.
ENOUGH = 0.95


@dataclass(frozen=True, slots=True)
class Pair:
    """One parameter on both sides, of one shape.

    Attributes:
        base: Where it lies in the base checkpoint.
        tuned: Where it lies in the tuned one.
    """

    base: Parameter
    tuned: Parameter

    @property
    def name(self) -> str:
        """Canonical name, with `.weight` or what else it ends in."""
        return self.base.name

    @property
    def target(self) -> str:
        """Canonical name without `.weight`."""
        return self.base.target

    @property
    def component(self) -> str:
        """unet, te, vae or other."""
        return self.base.component

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape, (out, in, *kernel) for a weight."""
        return self.base.shape

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape as a matrix: the kernel joins the input axis."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def kind(self) -> str:
        """linear, conv 1x1, conv 3x3, conv3d 1x2x2, embedding, bias, norm or other."""
        return parameter_kind(self.base)


@dataclass(frozen=True, slots=True)
class Pairing:
    """What two checkpoints have in common, and what they do not.

    Attributes:
        candidates: Weights of linears and convolutions that were asked for, in the tuned file's order.
        rest: Other parameters of the same components: biases, norms, embeddings.
        excluded: Candidates that a pattern excludes; their change still counts in totals.
        only_base: Names of candidates that only the base has, in components that both have.
        only_tuned: The same for the tuned checkpoint.
        reshaped: Names of candidates with two shapes, and both.
        others: Names of other parameters that only one side has, or that have two shapes.
        absent: Components asked for by default that a side does not hold at all.
        architecture: Of the tuned checkpoint, if known.
        names: All canonical names of the tuned checkpoint.
    """

    candidates: tuple[Pair, ...]
    rest: tuple[Pair, ...]
    excluded: tuple[Pair, ...]
    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    others: tuple[str, ...]
    absent: tuple[str, ...]
    architecture: Architecture | None
    names: tuple[str, ...]


def parameter_kind(parameter: Parameter) -> str:
    """Say what a parameter is, from its name and shape."""
    shape, module = parameter.shape, parameter.target.rpartition(".")[2]
    if not parameter.name.endswith(".weight"):
        return "bias" if parameter.name.endswith(".bias") else "other"
    if len(shape) < 2:
        return "norm"
    if module in TABLES:
        return "embedding"
    if len(shape) == 2:
        return "linear"
    return f"conv{'3d' if len(shape) == 5 else ''} {'x'.join(map(str, shape[2:]))}"


def pair(
    base: TensorSource,
    tuned: TensorSource,
    *,
    components: Sequence[str] | None = None,
    usual: Sequence[str] = ("unet", "te"),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_partial: bool = False,
    named: Callable[[TensorSource], Mapping[str, Parameter]] = parameters,
) -> Pairing:
    """Match the parameters of two checkpoints by canonical name.

    Args:
        base: The checkpoint that was started from.
        tuned: The checkpoint that came of it.
        components: Of `unet`, `te`, `vae`: these, and both sides must hold them; None: the usual.
        usual: Those that are taken, as far as both sides hold them, if none are asked for.
        include: Shell patterns on targets; a candidate must fit one, if there are any.
        exclude: Shell patterns on targets; a candidate must fit none.
        allow_partial: Go on where fewer than 95 % of the weights are found on both sides.
        named: Gives the parameters of each by name.

    Raises:
        TargetMismatchError: Too few weights match; the message lists some, with the nearest names.
        MismatchError: A component that was asked for is missing on a side.
        FormatError: A weight is not stored as floating point numbers, or with scales.
        ArgumentError: An unknown component, or patterns that fit nothing or leave nothing.
    """
    ours, theirs = named(base), named(tuned)
    wanted, absent = _components(components, usual, (base.name, ours), (tuned.name, theirs))
    left = {name: p for name, p in ours.items() if p.component in wanted}
    right = {name: p for name, p in theirs.items() if p.component in wanted}
    shared = [Pair(left[name], right[name]) for name in right if name in left]
    same = [both for both in shared if both.base.shape == both.tuned.shape]
    reshaped = [both for both in shared if both.base.shape != both.tuned.shape]
    weights = [both for both in same if is_candidate(both.base)]
    for both in weights:
        for source, parameter in ((base, both.base), (tuned, both.tuned)):
            _check_float(source, parameter)
    kept = {both.name for both in _selected(weights, include, exclude)}
    pairing = Pairing(
        candidates=tuple(both for both in weights if both.name in kept),
        rest=tuple(both for both in same if not is_candidate(both.base)),
        excluded=tuple(both for both in weights if both.name not in kept),
        only_base=_alone(left, right),
        only_tuned=_alone(right, left),
        reshaped=tuple(
            (both.name, both.base.shape, both.tuned.shape)
            for both in reshaped
            if is_candidate(both.tuned)
        ),
        others=tuple(
            name
            for name, p in {**left, **right}.items()
            if not is_candidate(p) and (name not in left or name not in right)
        )
        + tuple(both.name for both in reshaped if not is_candidate(both.tuned)),
        absent=absent,
        architecture=detect(theirs),
        names=tuple(theirs),
    )
    _check_enough(pairing, len(weights), (base.name, ours), (tuned.name, theirs), allow_partial)
    return pairing


def is_candidate(parameter: Parameter) -> bool:
    """Whether it is the weight of a linear or a convolution: what a LoRA can change."""
    kind = parameter_kind(parameter)
    return (kind == "linear" or kind.startswith("conv")) and 0 not in parameter.shape


def nearest(name: str, names: Collection[str]) -> str:
    """The most similar name in backticks, or a word that there is none."""
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"`{found[0]}`" if found else "none"


_Side = tuple[str, Mapping[str, Parameter]]


def _components(
    asked: Sequence[str] | None, usual: Sequence[str], base: _Side, tuned: _Side
) -> tuple[set[str], tuple[str, ...]]:
    """The components to take, and a word for each that a side lacks."""
    for component in asked or ():
        if component not in COMPONENTS:
            raise ArgumentError(
                f"unknown component `{component}`; choose among {', '.join(COMPONENTS)}"
            )
    held = [{p.component for p in side.values() if is_candidate(p)} for _, side in (base, tuned)]
    wanted, absent = set(asked or usual), list[str]()
    for component in COMPONENTS:
        lacking = [
            name for (name, _), has in zip((base, tuned), held, strict=True) if component not in has
        ]
        if component not in wanted or not lacking:
            continue
        title = COMPONENT_TITLES[component]
        if asked:
            raise MismatchError(
                f"{' and '.join(lacking)}: no weights of a {title} in it, which was asked for; "
                f"leave `{component}` out of the components, or give the full checkpoint"
            )
        wanted.discard(component)
        if len(lacking) == 1:
            absent.append(f"{title}: not in {lacking[0]}")
    return wanted, tuple(absent)


def _selected(pairs: Iterable[Pair], include: Sequence[str], exclude: Sequence[str]) -> list[Pair]:
    known = list(pairs)
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(both.target, pattern) for both in known):
            parts = {part for both in known for part in (both.target, *both.target.split("."))}
            raise ArgumentError(
                f"pattern `{pattern}` fits none of {len(known)} targets; "
                f"nearest: {nearest(pattern.strip('*.'), parts)}"
            )
    kept = [
        both
        for both in known
        if (not include or any(fnmatchcase(both.target, pattern) for pattern in include))
        and not any(fnmatchcase(both.target, pattern) for pattern in exclude)
    ]
    if known and not kept:
        raise ArgumentError(
            f"include and exclude patterns leave none of {len(known)} layers; exclude fewer"
        )
    return kept


def _check_float(source: TensorSource, parameter: Parameter) -> None:
    element = source.element(parameter.key)
    if not element.is_floating_point:
        raise FormatError(
            f"`{parameter.key}` is stored as {element.title}, which are no "
            "weights to subtract; give the checkpoint as it was before that was done to it",
            target=parameter.target,
            path=source.name,
        )


def _alone(side: Mapping[str, Parameter], other: Mapping[str, Parameter]) -> tuple[str, ...]:
    return tuple(name for name, p in side.items() if name not in other and is_candidate(p))


def _check_enough(
    pairing: Pairing, matched: int, base: _Side, tuned: _Side, allow_partial: bool
) -> None:
    unmatched = [*pairing.only_tuned, *pairing.only_base, *(name for name, *_ in pairing.reshaped)]
    total = matched + len(unmatched)
    if matched and (allow_partial or matched >= ENOUGH * total):
        return
    schemes = [naming(side) for _, side in (base, tuned)]
    if schemes[0] != schemes[1]:
        raise TargetMismatchError(
            f"{base[0]} has {schemes[0]} names and {tuned[0]} has {schemes[1]} names; "
            "give both in one naming scheme (no table translates these, or parts of a weight are missing)"
        )
    if not total:
        raise TargetMismatchError(
            f"{base[0]} and {tuned[0]} share no component with weights of linear or convolution "
            f"layers; the first names are `{next(iter(base[1]), '')}` and `{next(iter(tuned[1]), '')}`"
        )
    lines = [
        *(
            f"`{n}` only in {tuned[0]}; nearest: {nearest(n, base[1])}"
            for n in pairing.only_tuned[:3]
        ),
        *(
            f"`{n}` only in {base[0]}; nearest: {nearest(n, tuned[1])}"
            for n in pairing.only_base[:3]
        ),
        *(f"`{n}` is {a} in {base[0]} and {b} in {tuned[0]}" for n, a, b in pairing.reshaped[:3]),
    ]
    raise TargetMismatchError(
        f"only {matched} of {total} weights match between {base[0]} and {tuned[0]}: "
        + "; ".join(lines)
        + f"; {_counts(pairing)}: are they of one architecture?"
        + (" `allow_partial=True` goes on with those that match" if not allow_partial else "")
    )


def _counts(pairing: Pairing) -> str:
    return (
        f"in all {len(pairing.only_tuned)} only in tuned, {len(pairing.only_base)} only in base, "
        f"{len(pairing.reshaped)} of another shape"
    )
