"""What all kinds of layers share: their face, with what is so of most kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor

from ...elements import ELEMENTS, Element, Shaped, as_element, element_in, loadable, shaped
from ...errors import UnsupportedLayerError, WeightShapeError
from ...linalg.storage import rounded

if TYPE_CHECKING:
    from .families import KroneckerProduct

# How a kind is read on which programs differ: as its paper and its authors' program define it, or
# as ComfyUI applies it.
Convention = Literal["paper", "comfy"]


class Layer(Protocol):
    """What the change of one weight is.

    What a kind does not say here, its family or this class says for it: a new kind defines the names
    without a default, `change` or `delta` and `factors`, and what is different about it.

    Attributes:
        has_factors: Whether it is a method with factors; else it holds a parameter's own numbers, as
            differences of norms and tables do, which no list of modules has.
        is_full: Whether it is the difference itself, which has no rank to lower.
        is_proportional: Whether its change is proportional to numbers that it holds, so that a
            strength can be written into them.
        is_made_whole: Whether its change has no factors smaller than the weight.
        is_compact: Whether a LoRA of the same change is larger than it.
        is_peft_only: Whether no file but PEFT's says all of it.
    """

    __slots__ = ()

    has_factors: ClassVar[bool] = True
    is_full: ClassVar[bool] = False
    is_proportional: ClassVar[bool] = True
    is_made_whole: ClassVar[bool] = False
    is_compact: ClassVar[bool] = False
    is_peft_only: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What people call the kind: LoRA, LoHa, ..."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes, (out, in, *kernel); -1 for a side that it does not tell.

        A convolution whose factors are stored flat has (out, in * kernel).
        """
        ...

    @property
    def rank(self) -> int:
        """The largest rank that its change can have by the sizes of its factors."""
        ...

    @property
    def scale(self) -> float:
        """What its factors are multiplied by."""
        ...

    @property
    def element(self) -> Element:
        """What its numbers are, as stored: known without torch."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers as stored."""
        return self.element.dtype

    @property
    def needs_base(self) -> bool:
        """Whether its change depends on the weight it changes, so that `change` alone can tell it."""
        ...

    @property
    def factor_rank(self) -> int | None:
        """What an alpha is divided by; None for a kind whose scale is not made of one."""
        return None

    @property
    def stored_alpha(self) -> float | None:
        """The alpha that its scale is made of; None where there is none."""
        return None

    @property
    def inner_rank(self) -> int:
        """Inner size of the product that `factors` returns."""
        return self.rank

    @property
    def bias(self) -> Layer | None:
        """What it does to the bias beside its weight, if that has one; None for nothing."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by role, as a file holds them; alpha as a float32 scalar."""
        ...

    def stored_numbers(self) -> dict[str, Tensor]:
        """Its tensors that are numbers of the change, by role: no alpha, no flag."""
        return {role: one for role, one in self.tensors().items() if role != "alpha"}

    def in_dtype(self, target: str, dtype: torch.dtype) -> Layer:
        """Return the layer with its numbers rounded; `target` is for messages.

        Raises:
            NonFiniteError: A number is beyond the range of the dtype.
        """
        fields = {role: rounded(one, dtype, target) for role, one in self.stored_numbers().items()}
        return replace(cast("Any", self), **fields)  # every kind's roles are its fields

    def times(self, target: str, strength: float, *, has_alpha: bool) -> Layer:
        """Return the layer with a strength in its alpha; where it has none, in its numbers.

        Args:
            target: Its name, for messages.
            strength: Any but 0.
            has_alpha: Whether the file has a place for the alpha of a LoRA; else its scale goes
                into up.

        Raises:
            NonFiniteError: A number is then out of the range of what stores it.
            UnsupportedLayerError: Its change is not proportional to numbers that it holds.
        """
        if strength == 1:
            return self
        raise UnsupportedLayerError(
            f"layer `{target}`: no strength can be written into a {self.title} layer", target=target
        )

    def with_alpha(self) -> Layer:
        """Return the layer with an alpha for its scale, where its kind has one and it has none."""
        return self

    def at_scale(self, scale: float) -> Layer:
        """Return the layer at the scale that stands elsewhere, where it has no alpha of its own."""
        return self

    def with_rows(self, take: Callable[[Tensor], Tensor]) -> Layer | None:
        """Return the layer with other rows of its weight; None where they are not stored apart.

        Args:
            take: Gives them from a tensor that has all rows on its first axis.
        """
        return None

    def stored_change(self) -> Tensor:
        """The change, float64; of a kind that is made from the weight, its stored numbers, scaled."""
        if not self.needs_base:
            return self.delta(torch.float64)
        return (
            torch.cat([one.double().flatten() for one in self.stored_numbers().values()])
            * self.scale
        )

    def norm(self, dtype: torch.dtype | None = None) -> Tensor:
        """Frobenius norm of `stored_change`, float64; factors are scaled in `dtype`, or float64."""
        return torch.linalg.vector_norm(self.stored_change())

    def missed(
        self, other: Layer, strength: float = 1.0, dtype: torch.dtype | None = None
    ) -> float:
        """Frobenius norm of the change at a strength less that of another layer of this weight.

        Args:
            other: At strength 1.
            strength: The factor on this one.
            dtype: What factors are scaled in; None: float64.
        """
        return float(
            torch.linalg.vector_norm(self.stored_change() * strength - other.stored_change())
        )

    def kronecker(self) -> KroneckerProduct | None:
        """The layer as a Kronecker product of two matrices, if it is one."""
        return None

    def delta(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the change at strength 1, of `shape`, computed in ``dtype``, or float32.

        Raises:
            UnsupportedLayerError: It depends on the base weight.
        """
        ...

    def factors(self, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return up (out, rank) and down (rank, in * kernel), float32, whose product is the change.

        Exact. Scale and `strength` are in up. Where the rank is no smaller than a side of the
        weight, one of the two is an identity.

        Raises:
            UnsupportedLayerError: It depends on the base weight.
        """
        ...

    def factors_of(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of a weight, for a kind that is made from it.

        Raises:
            UnsupportedLayerError: It is made whole.
        """
        return self.factors()

    def change(
        self,
        base: Tensor,
        strength: float = 1.0,
        dtype: torch.dtype | None = None,
        convention: Convention = "paper",
    ) -> Tensor:
        """Return what is added to the weight at a strength: of its shape, on its device, in ``dtype``.

        Args:
            base: The weight; not written into.
            strength: The user's factor; 0 changes nothing, 1 is what was trained.
            dtype: What to compute in; None: float32.
            convention: How to read a kind on which programs differ; see docs/kinds.md.

        Raises:
            WeightShapeError: The layer is for a weight of another shape.
        """
        ...


def multiplied(
    target: str, tensor: Tensor, strength: float, element: Element | None = None
) -> Tensor:
    """Return numbers times a strength, rounded.

    Args:
        target: The layer's name, for messages.
        tensor: The numbers.
        strength: The factor.
        element: Of the result; None: theirs, or the nearest that loaders read.

    Raises:
        NonFiniteError: One is then out of its range.
    """
    element = element or loadable(element_in(tensor))
    if isinstance(tensor, Shaped):
        return as_element(tensor, element)
    return rounded(tensor.double() * strength, element.dtype, target)


def fits(shape: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a layer of one shape can change a weight of another.

    Trailing ones do not count: a linear and a 1x1 convolution hold the same numbers. A layer of two
    axes may hold the kernel flat.
    """
    if -1 in shape:
        return len(weight) >= 2 and all(
            one in (-1, other) for one, other in zip(shape, weight, strict=False)
        )
    if len(shape) == 2 and len(weight) > 2:
        return tuple(shape) == (weight[0], math.prod(weight[1:]))
    return _plain(shape) == _plain(weight)


def check_fits(layer: Layer, base: Tensor) -> None:
    """Refuse a weight that is not the layer's.

    Raises:
        WeightShapeError: Their shapes differ.
    """
    if not fits(layer.shape, base.shape):
        raise WeightShapeError(
            f"a {layer.title} layer changes a weight of shape {layer.shape}, this one is "
            f"{tuple(base.shape)}; the adapter is for another model"
        )


def by_role(alpha: float | None = None, **tensors: Tensor | None) -> dict[str, Tensor]:
    """Return those tensors that there are, and alpha as a float32 scalar."""
    roles = {role: tensor for role, tensor in tensors.items() if tensor is not None}
    if alpha is not None:
        is_outline = any(isinstance(one, Shaped) for one in roles.values())
        roles["alpha"] = (
            shaped((), ELEMENTS["F32"]) if is_outline else torch.tensor(alpha, dtype=torch.float32)
        )
    return roles


def _plain(shape: Sequence[int]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)
