"""Adapters onto a model for a part of the steps: each by its curve, or one of two by K-LoRA's rule.

Imports the host, and `lora_ops` when it runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..form.curves import Curve
from ..form.texts import WARNS, applied_lines
from ..host import host
from ..host.scheduled import Timed, scheduled, why_constant
from .applying import check_any, host_file, models_of
from .patch_places import Models, key_of
from .patching import Matched, match

if TYPE_CHECKING:
    from ...lora_ops import Layer, MemoryFile

# Where reports say how K-LoRA chooses.
_TOLD = (0.0, 0.25, 0.5, 0.75, 1.0)
_RESHAPES = "it changes the shape of its weight, which is one in all steps"


@dataclass(frozen=True, slots=True)
class KLora:
    """K-LoRA's rule; see `lora_ops.inspect.prevalence`.

    Attributes:
        alpha: How much the style's scale grows.
        beta: The scale at the beginning.
        wraps: Whether it goes on from 0 where it reaches alpha.
    """

    alpha: float
    beta: float
    wraps: bool

    def scale(self, progress: float) -> float:
        """What the style's sums are multiplied by."""
        from ...lora_ops.inspect.prevalence import style_scale

        return style_scale(progress, self.alpha, self.beta, wraps=self.wraps)


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """An adapter, where it goes, and when."""

    file: MemoryFile
    matched: Matched
    curve: Curve

    def changes(self, taken: Mapping[str, Callable[[float], bool]]) -> Iterator[Timed]:
        """Its changes; those of some weights only while they are taken."""
        for place, (patch, factor) in self.matched.patches.items():
            if factor:
                when = taken.get(key_of(place))
                yield Timed(place, patch, _strength(factor, self.curve, when))

    def layers(self) -> dict[str, list[Layer]]:
        """Its layers by the weight they change."""
        from ...lora_ops import decode

        held = decode(self.file).layers
        found: dict[str, list[Layer]] = defaultdict(list)
        for place, name in self.matched.names.items():
            found[key_of(place)].append(held[name])
        return found


def schedule(
    model: Any,
    loras: Sequence[tuple[Mapping[str, Tensor], Curve]],
    *,
    by_steps: bool,
    rule: KLora | None = None,
) -> tuple[Any, list[tuple[str, list[str]]], list[str]]:
    """Return a clone of a MODEL with adapters on it whose strengths change as it is sampled.

    Args:
        model: The diffusion model.
        loras: None of them empty; where there is a rule, the subject's and the style's.
        by_steps: What progress is; see `scheduled`.
        rule: How one of two is chosen in each weight that both change; None: both act.

    Returns:
        The clone, the name and the lines of each adapter, and lines besides.

    Raises:
        MismatchError: Nothing of an adapter fits, or can be scheduled.
        LoraOpsError: A rule of blocks that fits nothing; a layer that K-LoRA cannot compare.
    """
    shapes = host.shapes(model)
    models = models_of(model, None, shapes, {})
    fitted = [_fitted(model, models, lora, curve) for lora, curve in loras]
    taken: list[dict[str, Callable[[float], bool]]] = [{} for _ in fitted]
    notes: list[str] = []
    if rule is not None:
        taken, notes = _choices(rule, *fitted)
    changes = [one for each, when in zip(fitted, taken, strict=True) for one in each.changes(when)]
    told = [
        (each.file.name, applied_lines(each.file.name, each.matched, (), (f"{each.curve}", 1.0)))
        for each in fitted
    ]
    return scheduled(model, changes, by_steps=by_steps), told, notes


def _strength(
    factor: float, curve: Curve, when: Callable[[float], bool] | None
) -> Callable[[float], float]:
    if when is None:
        return lambda progress: factor * curve.at(progress)
    return lambda progress: factor * curve.at(progress) if when(progress) else 0.0


def _fitted(model: Any, models: Models, lora: Mapping[str, Tensor], curve: Curve) -> _Fitted:
    """An adapter matched to a model, without what no schedule can change."""
    from ...lora_ops import ArgumentError

    file = host_file(lora)
    try:
        matched = match(file, models, curve.blocks)
    except ArgumentError as error:  # of the blocks, for which the node has no input of its own
        raise ArgumentError(f"`| {curve.blocks}` of {file.stem}: {error}") from error
    for place, (patch, _) in list(matched.patches.items()):
        why = _RESHAPES if host.reshapes(patch) else why_constant(model, key_of(place))
        if why:
            del matched.patches[place]
            matched.missing[matched.names.pop(place)] = why
    check_any(file, matched)
    return _Fitted(file, matched, curve)


def _choices(
    rule: KLora, subject: _Fitted, style: _Fitted
) -> tuple[list[dict[str, Callable[[float], bool]]], list[str]]:
    """When each of two is taken, by weight; and what is said of that."""
    from ...lora_ops.inspect.prevalence import Rivals, balance, prevalences

    ours, theirs = subject.layers(), style.layers()
    rivals = [Rivals(key, tuple(ours[key]), tuple(theirs[key])) for key in ours if key in theirs]
    found = prevalences(rivals, placement=host.placement(), progress=host.progress())
    gamma = balance(found)
    limits = {one.name: one.limit(gamma) for one in found}
    counts = Counter({at: sum(limit > rule.scale(at) for limit in limits.values()) for at in _TOLD})
    notes = [
        f"K-LoRA, sizes {gamma:.4g} to 1: of {len(limits)} weights that both change, {subject.file.stem} is "
        f"taken in {', '.join(f'{count} at {at:g}' for at, count in counts.items())}"
    ]
    if len(set(counts.values())) == 1 and counts[0.0] in (0, len(limits)):
        notes[0] = f"{WARNS}{notes[0]}: the other never" if counts[0.0] else f"{WARNS}{notes[0]}"
    return [
        {key: _before(rule, limit, True) for key, limit in limits.items()},
        {key: _before(rule, limit, False) for key, limit in limits.items()},
    ], notes


def _before(rule: KLora, limit: float, wanted: bool) -> Callable[[float], bool]:
    """Whether the style's scale is below a limit, or whether not."""
    return lambda progress: (limit > rule.scale(progress)) is wanted
