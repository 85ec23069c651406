"""What an operation says about its result: per layer, in total, and what it left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rounding:
    """What of a layer's difference is the rounding of its storage, as far as that can be told.

    Attributes:
        floor: The singular value below which a direction is not told from rounding.
        noise: Frobenius norm of what is probably rounding.
        above: How many directions of the difference stand above the floor; where only those of the layer were
            looked at, how many of them.
        change: Estimated Frobenius norm of the true change: the difference without its rounding.
        missed: Estimated Frobenius norm of the true change less that of the layer; None where it was not
            looked for.
    """

    floor: float
    noise: float
    above: int
    change: float
    missed: float | None = None


@dataclass(frozen=True, slots=True)
class Weighted:
    """A layer's change by what it makes of the inputs that were recorded: |D X^T| for inputs as rows of X.

    Attributes:
        norm: Of the true change.
        residual: Of the true change less that of the layer.
    """

    norm: float
    residual: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer that was written, or read back.

    Attributes:
        target: Its name.
        component: unet, te or vae.
        kind: linear, conv 1x1, conv 3x3, ...; or that of a full difference: bias, norm, ...
        shape: Of the weight, (out, in, *kernel).
        rank: Rank of the layer; 0 where the adapter does not hold it.
        norm: Frobenius norm of the true change: of the difference of the weights as they are stored.
        residual: Frobenius norm of the true change less that of the layer, whose numbers are
            those that are written, after rounding.
        rounding: What of that difference is the rounding of storage; None where that was not asked.
        sweeps: How many rounds the iteration took that found the layer; None for what needs none.
        search: In which numbers its directions were searched, `int8`, `bfloat16` or `float32`, before they were
            finished in float32; None where nothing was searched, because the truncation is exact.
        weighted: Both norms again, by the inputs that were recorded; None where none were.
    """

    target: str
    component: str
    kind: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    residual: float
    rounding: Rounding | None = field(default=None, kw_only=True)
    sweeps: int | None = field(default=None, kw_only=True)
    search: str | None = field(default=None, kw_only=True)
    weighted: Weighted | None = field(default=None, kw_only=True)

    @property
    def error(self) -> float:
        """Relative error, `residual` / `norm`; infinite where a weight changes that should not."""
        return _share(self.residual, self.norm)

    @property
    def energy(self) -> float:
        """Share of the squared norm that is kept; below 0 only if the layer makes things worse."""
        return 1 - self.error**2

    @property
    def estimated_error(self) -> float | None:
        """Estimated relative error against the true change, without its rounding; None where not known."""
        known = self.rounding
        return None if known is None or known.missed is None else _share(known.missed, known.change)

    @property
    def weighted_error(self) -> float | None:
        """Relative error of the layer's output for the inputs that were recorded; None where none were."""
        known = self.weighted
        return None if known is None else _share(known.residual, known.norm)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = {**asdict(self), "error": self.error, "energy": self.energy}
        if self.sweeps is None:
            del found["sweeps"]
        if self.rounding is None:
            del found["rounding"]
        elif self.estimated_error is not None:
            found["estimated_error"] = self.estimated_error
        if self.search is None:
            del found["search"]
        if self.weighted is None:
            del found["weighted"]
        else:
            found["weighted_error"] = self.weighted_error
        return found


@dataclass(frozen=True, slots=True)
class Skip:
    """A parameter that is not in the result.

    Attributes:
        target: Its name.
        component: unet, te, vae or other.
        kind: linear, bias, norm, ...
        reason: Why, in words for people; the same words for the same reason.
        norm: Frobenius norm of its change, all of which is lost.
    """

    target: str
    component: str
    kind: str
    reason: str
    norm: float


@dataclass(frozen=True, slots=True)
class Report:
    """All layers, all skips, and totals.

    Attributes:
        layers: What is in the result.
        skips: What is not, with reasons: every parameter of the chosen components is in one list.
        notes: Sentences on what is worth knowing, as of components that one side lacks.
        seconds: Wall time.
        size: Bytes of the file; 0 where none was written.
        stored: Weights that were written with scales: the norm of each, and of what that has changed.
    """

    layers: tuple[LayerReport, ...]
    skips: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    size: int = 0
    stored: tuple[LayerReport, ...] = ()

    @property
    def error(self) -> float:
        """Relative Frobenius error over all layers in `layers`."""
        return total_error(self.layers)

    @property
    def energy(self) -> float:
        """Share of the squared change of those layers that is kept."""
        return 1 - self.error**2

    @property
    def estimated_error(self) -> float | None:
        """Estimated relative error against the true change over all layers; None where none has one.

        A layer whose rounding was not asked for counts with its error against the difference.
        """
        if all(layer.estimated_error is None for layer in self.layers):
            return None
        known = [
            (layer.residual, layer.norm)
            if layer.rounding is None or layer.rounding.missed is None
            else (layer.rounding.missed, layer.rounding.change)
            for layer in self.layers
        ]
        return _share(*(math.hypot(*norms) for norms in zip(*known, strict=True)))

    @property
    def weighted_error(self) -> float | None:
        """Relative error of the outputs over all layers whose inputs were recorded; None where none were."""
        known = [one.weighted for one in self.layers if one.weighted is not None]
        if not known:
            return None
        residual = math.hypot(*(one.residual for one in known))
        return _share(residual, math.hypot(*(one.norm for one in known)))

    @property
    def rounding(self) -> float | None:
        """Share of the squared difference that is probably rounding, of the layers where that was asked."""
        known = [layer for layer in self.layers if layer.rounding is not None]
        noise = math.fsum(one.rounding.noise**2 for one in known if one.rounding)
        return noise / math.fsum(one.norm**2 for one in known) if known else None

    @property
    def searches(self) -> dict[str, int]:
        """How many layers were searched in which numbers; those that are exact are not among them."""
        return dict(sorted(Counter(one.search for one in self.layers if one.search).items()))

    @property
    def left_out(self) -> float:
        """Share of the squared change of everything paired that is in `skips`."""
        lost = math.fsum(skip.norm**2 for skip in self.skips)
        whole = lost + math.fsum(layer.norm**2 for layer in self.layers)
        return lost / whole if whole else 0.0

    def components(self) -> dict[str, float]:
        """Relative error by component."""
        names = dict.fromkeys(layer.component for layer in self.layers)
        return {n: total_error(x for x in self.layers if x.component == n) for n in names}

    def reasons(self) -> dict[tuple[str, str], tuple[int, float]]:
        """Count and share of the squared change, by (reason, kind) of what was skipped."""
        whole = math.fsum(x.norm**2 for x in (*self.layers, *self.skips)) or 1.0
        found: dict[tuple[str, str], tuple[int, float]] = {}
        for skip in self.skips:
            count, share = found.get((skip.reason, skip.kind), (0, 0.0))
            found[skip.reason, skip.kind] = (count + 1, share + skip.norm**2 / whole)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: totals first, then every layer and every skip."""
        stored = [{k: v for k, v in one.to_dict().items() if k != "energy"} for one in self.stored]
        told = {
            "weighted_error": self.weighted_error,
            "estimated_error": self.estimated_error,
            "rounding": self.rounding,
        }
        return {
            "error": self.error,
            **{name: value for name, value in told.items() if value is not None},
            "energy": self.energy,
            **({"searches": self.searches} if self.searches else {}),
            "components": self.components(),
            "left_out": self.left_out,
            "seconds": self.seconds,
            "size": self.size,
            "notes": list(self.notes),
            "layers": [layer.to_dict() for layer in self.layers],
            "skips": [asdict(skip) for skip in self.skips],
            **({"stored": stored} if stored else {}),
        }


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 layer, 2 layers."""
    return f"{number} {noun}{'s' * (number != 1)}"


def total_error(layers: Iterable[LayerReport]) -> float:
    """Root of the summed squared residuals over the root of the summed squared norms."""
    known = list(layers)
    return _share(
        math.hypot(*(layer.residual for layer in known)),
        math.hypot(*(layer.norm for layer in known)),
    )


def _share(residual: float, norm: float) -> float:
    if norm == 0:
        return math.inf if residual else 0.0
    return residual / norm
