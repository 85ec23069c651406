"""What the operations on adapters have in common: what becomes of one layer, and of all together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import MismatchError, NonFiniteError, UnknownFormatError, UnsupportedLayerError
from ..report import LayerReport, Report, Skip, Weighted, counted
from ..run.job import Outcome
from .adapter import Adapter
from .formats import component, format_named, module_keys
from .layers import DoraLayer, Layer, LoraLayer, innermost, unpadded

ZERO = "changes nothing"
_BIAS, _FULL = "bias", "full"


@dataclass(frozen=True, slots=True)
class EditReport(LayerReport):
    """One layer of an edited adapter.

    Attributes:
        was: Its rank in each input; 0 where an input does not hold it.
        coefficients: What the change of each input was multiplied by, strength included.
        from_kind: Its kinds in the inputs, such as LoHa, if it became a LoRA; else empty.
        cosine: With the plain sum of the inputs, where a method made it that is no sum of them; else
            None.
    """

    was: tuple[int, ...]
    coefficients: tuple[float, ...]
    from_kind: str = ""
    cosine: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether it is a full difference, whose rank follows from its shape."""
        return self.kind in (_BIAS, _FULL)


def kind_of(target: str, layer: Layer) -> str:
    """Say what a layer changes, from its shape: linear, conv 3x3, bias, ...; else its kind: LoHa, ..."""
    shape, plain = layer.shape, innermost(layer)
    if plain.is_full:
        return _BIAS if target.endswith(".bias") else _FULL
    if len(shape) <= 2:
        # In other kinds a shape of two axes may be that of a convolution with its kernel flat.
        return "linear" if isinstance(plain, LoraLayer) else plain.title
    return f"conv{'3d' if len(shape) == 5 else ''} {'x'.join(map(str, shape[2:]))}"


def skipped(target: str, layer: Layer, reason: str, norm: float) -> Outcome[Layer]:
    """A layer that is left out."""
    report = Skip(target, component(target), kind_of(target, layer), reason, norm)
    return Outcome(target, None, (report,))


def edited(
    target: str,
    layer: Layer,
    *,
    norm: float,
    residual: float,
    was: tuple[int, ...],
    coefficients: tuple[float, ...] = (1.0,),
    made_of: Iterable[Layer] = (),
    from_kind: str | None = None,
    cosine: float | None = None,
    weighted: Weighted | None = None,
) -> Outcome[Layer]:
    """A layer that is written, with the norm of what it should be and of what it misses.

    The kind that it was is that of what it is made of, unless it is given.
    """
    if from_kind is None:
        titles = dict.fromkeys(one.title for one in made_of)
        from_kind = ", ".join(titles) if titles.keys() - {layer.title} else ""
    report = EditReport(
        target=target,
        component=component(target),
        kind=kind_of(target, layer),
        shape=layer.shape,
        rank=layer.rank,
        norm=norm,
        residual=residual,
        was=was,
        coefficients=coefficients,
        from_kind=from_kind,
        cosine=cosine,
        weighted=weighted,
    )
    return Outcome(target, layer, (report,))


def described(layer: Layer) -> str:
    """Say what a layer is that an operation refuses, to go on after its name."""
    plain = unpadded(layer)
    is_dora = isinstance(plain, DoraLayer)
    return "has DoRA magnitudes" if is_dora else f"is of kind {plain.title}"


def base_bound(target: str, layer: Layer) -> UnsupportedLayerError:
    """The error for a layer that only PEFT's own files can hold, with the way out."""
    return UnsupportedLayerError(
        f"layer `{target}` is of kind {layer.title}: it stands for what its factors became less what "
        "they were, which PEFT makes from the weight at loading, and no other format says so; make "
        'it a plain LoRA: `convert(lora, to="lora", base=checkpoint)`',
        target=target,
    )


def converted(report: Report) -> Iterator[str]:
    """Say how many layers changed their kind."""
    kinds = [one.from_kind for one in report.layers if isinstance(one, EditReport)]
    for kind, count in Counter(filter(None, kinds)).items():
        yield f"{counted(count, 'layer')} became LoRA, from {kind}"


def finite(norm: Tensor | float, target: str, layer: Layer, name: str = "the adapter") -> float:
    """Return a norm as a number.

    Raises:
        NonFiniteError: It is NaN or infinite; names the tensor, and how many such it holds.
    """
    number = float(norm)
    if math.isfinite(number):
        return number
    for role, tensor in layer.tensors().items():
        wide = tensor.float()
        nan, infinite = int(wide.isnan().sum()), int(wide.isinf().sum())
        if nan or infinite:
            raise NonFiniteError(
                f"{name}: the {role} of layer `{target}` holds {nan} NaN and {infinite} infinite "
                f"values out of {wide.numel()}; the file is damaged, or its training diverged: "
                "use another",
                target=target,
            )
    raise NonFiniteError(
        f"{name}: the change of layer `{target}` is too large for float32", target=target
    )


def all_keys(adapter: Adapter) -> dict[str, Mapping[str, str]]:
    """Return the keys of an adapter with those that its layers would have as LoRA, by target."""
    format = format_named(adapter.format)
    return {
        target: {**module_keys(format, adapter.module(target)), **keys}
        for target, keys in adapter.keys.items()
    }


def has_numbers_of(result: Layer, layer: Layer) -> bool:
    """Whether a result holds the very tensors of a layer; its alpha may differ."""
    held = result.tensors()
    return all(held.get(role) is one for role, one in layer.tensors().items() if role != "alpha")


def check_not_empty(adapter: Adapter, name: str = "the adapter") -> None:
    """Refuse an adapter without layers.

    Raises:
        UnknownFormatError: It has none.
    """
    if not adapter.layers:
        raise UnknownFormatError(f"{name} holds no layers; see what it is with `describe()`")


def collect(
    like: Adapter, results: Iterable[Outcome[Layer]], **changes: Any
) -> tuple[Adapter, Report]:
    """Return the edited adapter, all in memory, and its report.

    Args:
        like: The adapter whose extras, metadata, format and keys go on.
        results: What became of each layer.
        **changes: New values of the adapter's other fields.
    """
    known = list(results)
    layers = {one.name: one.value for one in known if one.value is not None}
    keys = {
        target: {role: key for role, key in roles.items() if role in own}
        for target, roles in changes.pop("keys", like.keys).items()
        if target in layers and (own := {*layers[target].tensors(), "alpha"})
    }
    adapter = replace(like, layers=layers, keys=keys, **changes)
    return adapter, summarise(one.report for one in known)


def summarise(reports: Iterable[LayerReport | Skip]) -> Report:
    """Sort what became of the layers into a report.

    Raises:
        MismatchError: No layer is left.
    """
    known = list(reports)
    layers = tuple(one for one in known if isinstance(one, LayerReport))
    skips = tuple(one for one in known if isinstance(one, Skip))
    if not layers:
        reasons = Counter(skip.reason for skip in skips)
        told = ", ".join(f"{counted(n, 'layer')} {why}" for why, n in reasons.most_common())
        raise MismatchError(f"no layer is left ({told}); nothing was written")
    return Report(layers, skips)
