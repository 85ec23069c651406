"""What a key's end says: the kind of layer it belongs to, and its role there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Every spelling of a LoRA pair that ComfyUI, A1111, diffusers or PEFT write; the name of PEFT's
# adapter (`default`) may stand before `.weight`.
_LORA = (
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.lora_B(\.default)?(\.weight)?", "up"),
    (r"\.lora_A(\.default)?(\.weight)?", "down"),
    (r"_lora\.up\.weight", "up"),
    (r"_lora\.down\.weight", "down"),
    (r"\.lora\.up\.weight", "up"),
    (r"\.lora\.down\.weight", "down"),
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"\.lora_linear_layer\.down\.weight", "down"),
    (r"\.lora_B(\.default)?\.bias", "up_bias"),
)
_OTHERS = (
    ("full", (r"\.diff", "diff"), (r"\.diff_b", "diff_b")),
    ("full", (r"\.w_norm", "diff"), (r"\.b_norm", "diff_b")),
    ("loha", *((rf"\.hada_{part}", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))),
    ("lokr", *((rf"\.lokr_{part}", part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"))),
    ("lokr", (r"\.lokr_t2", "t2")),
    ("glora", *((rf"\.{part}\.weight", part) for part in ("a1", "a2", "b1", "b2"))),
    # Programs disagree on what `oft_diag` of the first LyCORIS is: the rotation, or what makes it.
    ("oft", (r"\.oft_blocks", "blocks"), (r"\.oft_diag", "diag"), (r"\.rescale", "rescale")),
    ("ia3", (r"\.on_input", "on_input")),
    ("set", (r"\.set_weight", "set_weight")),
)
# Beside a layer of any kind.
_SHARED = (
    (r"\.alpha", "alpha"),
    (r"\.dora_scale", "dora_scale"),
    (r"\.lora_magnitude_vector(\.default)?(\.weight)?", "magnitude"),
    (r"\.reshape_weight", "reshape_weight"),
)
_SUFFIXES: tuple[tuple[re.Pattern[str], str | None, str], ...] = tuple(
    (re.compile(rf"^(.+){pattern}$"), kind, role)
    for kind, spellings in (
        ("lora", _LORA),
        *((kind, tuple(spellings)) for kind, *spellings in _OTHERS),
        (None, _SHARED),
    )
    for pattern, role in spellings
)

BIAS = ".bias"
# The gains of IA3, a key like any parameter's: they are told by the flag beside them.
_GAINS = ".weight"


@dataclass(frozen=True, slots=True)
class Module:
    """The keys of one module in an adapter file.

    Attributes:
        kind: lora, full, loha, lokr, glora, oft, ia3, set; ``mixed`` for two of them at once.
        keys: The key by role: up, down, mid, alpha, dora_scale, magnitude, diff, and those of other
            kinds.
    """

    kind: str
    keys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Modules:
    """The keys of an adapter file, by module.

    Attributes:
        modules: By module name, with the prefix it has in the file. A bias has a module of its own,
            the name ending in ``.bias``.
        extras: Keys that belong to no layer.
    """

    modules: Mapping[str, Module]
    extras: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether the file is one: a checkpoint may have a name or two that end like an adapter's."""
        return sum(len(module.keys) for module in self.modules.values()) > len(self.extras)


def modules(keys: Iterable[str]) -> Modules:
    """Sort the keys of an adapter file into modules. Every key is in one module or in the extras."""
    roles: dict[str, dict[str, str]] = {}
    kinds: dict[str, set[str]] = {}
    extras: list[str] = []
    for key in keys:
        module, kind, role = _split(key)
        if role is None or role in roles.get(module, {}):
            extras.append(key)
            continue
        roles.setdefault(module, {})[role] = key
        if kind is not None:
            kinds.setdefault(module, set()).add(kind)
    for module in roles.keys() - kinds.keys():  # an alpha of nothing is no layer
        extras.extend(roles.pop(module).values())
    for module in (name for name, found in kinds.items() if found == {"ia3"}):
        if module + _GAINS in extras:
            extras.remove(module + _GAINS)
            roles[module]["weight"] = module + _GAINS
    return Modules(
        {
            module: Module(kind.pop() if len(kind := kinds[module]) == 1 else "mixed", keys)
            for module, keys in roles.items()
        },
        tuple(extras),
    )


def _split(key: str) -> tuple[str, str | None, str | None]:
    for pattern, kind, role in _SUFFIXES:
        match = pattern.match(key)
        if match is not None:
            return (match[1] + BIAS, kind, "diff") if role == "diff_b" else (match[1], kind, role)
    return key, None, None
