"""What is baked: adapters with strengths, and their layers, each found to fit its parameter."""

from __future__ import annotations

from dataclasses import dataclass

from ...adapters.edited import described
from ...adapters.formats import Configured, Module, read_configured
from ...adapters.layers import Layer
from ...adapters.matching.seats import Seat
from ...adapters.outline import HeaderOnlySource
from ...errors import UnsupportedLayerError
from ...source import TensorSource


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One layer of one adapter, times its strength.

    Attributes:
        source: The adapter.
        name: The module's name in it.
        module: The module's keys.
        strength: The factor; negative to take the layer out.
        told: What the file's configuration says of it.
        needs_base: Whether its change is made from the weight.
        seat: Where it lies in the checkpoint; None where that has no place for it.
    """

    source: TensorSource
    name: str
    module: Module
    strength: float
    told: Configured | None = None
    needs_base: bool = False
    seat: Seat | None = None

    def read(self) -> Layer:
        """Read the layer."""
        return read_configured(self.source, self.name, self.module, self.told)


def check_kind(share: Share, sign: int = 1) -> Layer:
    """Return a layer that can be baked, without its data; only headers are read.

    Args:
        share: The layer.
        sign: 1 to bake, -1 to unbake.

    Raises:
        UnsupportedLayerError: It is of a kind that is not read, or that cannot be taken out.
        LayerShapeError: Its factors do not fit together.
    """
    layer = read_configured(HeaderOnlySource(share.source), share.name, share.module, share.told)
    if sign < 0 and layer.needs_base:
        raise UnsupportedLayerError(
            f"layer `{share.name}` {described(layer)}: what it changed was made from the weight as "
            "it was before, so it cannot be taken out again; go back to the checkpoint it was baked into",
            target=share.name,
            path=share.source.name,
        )
    return layer
