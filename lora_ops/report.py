"""What an operation says about its result: per layer, in total, and what it left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer that was written, or read back.

    Attributes:
        target: Its name.
        component: unet, te or vae.
        kind: linear, conv 1x1, conv 3x3, ...; or that of a full difference: bias, norm, ...
        shape: Of the weight, (out, in, *kernel).
        rank: Rank of the layer; 0 where the adapter does not hold it.
        norm: Frobenius norm of the true change.
        residual: Frobenius norm of the true change less that of the layer, whose numbers are
            those that are written, after rounding.
    """

    target: str
    component: str
    kind: str
    shape: tuple[int, ...]
    rank: int
    norm: float
    residual: float

    @property
    def error(self) -> float:
        """Relative error, `residual` / `norm`; infinite where a weight changes that should not."""
        return _share(self.residual, self.norm)

    @property
    def energy(self) -> float:
        """Share of the squared norm that is kept; below 0 only if the layer makes things worse."""
        return 1 - self.error**2


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
        stored = [{**asdict(one), "error": one.error} for one in self.stored]
        return {
            "error": self.error,
            "energy": self.energy,
            "components": self.components(),
            "left_out": self.left_out,
            "seconds": self.seconds,
            "size": self.size,
            "notes": list(self.notes),
            "layers": [
                {**asdict(layer), "error": layer.error, "energy": layer.energy}
                for layer in self.layers
            ],
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
