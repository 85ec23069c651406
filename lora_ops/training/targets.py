"""Which submodules a text means: shell patterns over their names, and presets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import ArgumentError
from ..models.pairing import nearest
from .adapted import is_supported

_PARTS = (
    *(
        "q",
        "k",
        "v",
        "o",
        "qkv",
        "to_q",
        "to_k",
        "to_v",
        "to_qkv",
        "to_out",
        "to_out.0",
        "out_proj",
    ),
    *("q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value", "c_attn", "in_proj"),
)
PRESETS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "attention": tuple(f"*.{part}" for part in _PARTS),
}


def chosen(module: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the submodules that are meant, by name; those of supported classes only.

    Args:
        module: The model.
        targets: A preset (`attention`, `all`), or shell patterns for whole names (`*.to_q`).

    Raises:
        ArgumentError: A pattern fits none: names the nearest.
    """
    patterns = [targets] if isinstance(targets, str) else list(targets)
    supported = dict(_supported(module))
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        wanted = PRESETS.get(pattern, (pattern,))
        fitting = {
            name: one
            for name, one in supported.items()
            if any(fnmatchcase(f".{name}" if own.startswith("*.") else name, own) for own in wanted)
        }
        if not fitting:
            raise ArgumentError(
                f"target `{pattern}` fits none of {len(supported)} linear, convolution and embedding "
                f"layers; nearest: {nearest(pattern.strip('*.'), supported)}; presets: "
                f"{', '.join(PRESETS)}"
            )
        found |= fitting
    return {name: one for name, one in supported.items() if name in found}


def _supported(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Supported submodules, in the model's order; one that is there twice by its first name."""
    yield from ((name, one) for name, one in module.named_modules() if name and is_supported(one))
