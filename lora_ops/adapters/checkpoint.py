"""What is let in as a checkpoint: plain weights of a model, whatever holds them."""

from __future__ import annotations

from ..errors import MismatchError
from ..files import refuse_quantised
from ..source import TensorSource
from .formats import foreign_method, modules, recognise

_WAY_OUT = "give the checkpoint itself, or see what it is with `describe()`"


def check_checkpoint(source: TensorSource, way_out: str = _WAY_OUT) -> None:
    """Let a model's plain weights pass, from names, dtypes and metadata alone.

    Args:
        source: What was given as one.
        way_out: What whoever gave an adapter is told to do.

    Raises:
        MismatchError: It is a LoRA, an embedding or the like.
        QuantisedError: Its numbers are stored with scales; read plainly they would be wrong.
    """
    grouped = modules(source.keys())
    other = recognise(grouped)
    if other is not None and not other.is_network:
        raise MismatchError(
            f"{source.name} is {other.article} {other.title}, not a checkpoint; "
            "give the checkpoint itself"
        )
    method = foreign_method(grouped)
    if grouped.is_adapter or method:
        what = method[0] if method else "LoRA or the like"
        raise MismatchError(f"{source.name} is an adapter ({what}), not a checkpoint; {way_out}")
    refuse_quantised(source)


def is_controlnet(source: TensorSource) -> bool:
    """Whether it is a ControlNet alone; checkpoints from the training of one hold the UNet besides.

    Args:
        source: A file, of which only names are looked at.
    """
    keys = source.keys()
    mark = recognise(modules(keys))
    is_one = mark is not None and mark.title == "ControlNet"
    return is_one and not any(key.startswith("model.diffusion_model.") for key in keys)


def is_checkpoint(source: TensorSource) -> bool:
    """Whether `check_checkpoint` lets it pass.

    Raises:
        QuantisedError: See `check_checkpoint`.
    """
    try:
        check_checkpoint(source)
    except MismatchError:
        return False
    return True
