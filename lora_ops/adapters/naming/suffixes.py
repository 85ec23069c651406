"""What a key's end says: the kind of layer it belongs to, and its role there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# A whole module's state dict has the name of the adapter in PEFT's keys, mostly `default`.
_PEFT_ENDS = ("", ".weight", ".default", ".default.weight")
_UP_BIAS = (".lora_B.bias", ".lora_B.default.bias")
_NAMED = re.compile(
    r"(\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_R|ia3_l|boft_[Rs]|lora_E|vera_lambda_[bd]))"
    r"\.(?!(?:weight|bias|scaled_oft)$)([^.]+)((?:\.weight|\.bias)?)$"
)
# PEFT has the factors of an embedding the other way round: A is (rank, rows), B is (width, rank).
_TABLE = ".lora_embedding_"
TABLE_UP, TABLE_DOWN = f"{_TABLE}A", f"{_TABLE}B"
# Every spelling of a LoRA pair that ComfyUI, A1111, diffusers or PEFT write.
_LORA = (
    (".lora_up.weight", "up"),
    (".lora_down.weight", "down"),
    (".lora_mid.weight", "mid"),
    *((f".lora_B{end}", "up") for end in _PEFT_ENDS),
    *((f".lora_A{end}", "down") for end in _PEFT_ENDS),
    *((f"{TABLE_UP}{end}", "up") for end in _PEFT_ENDS),
    *((f"{TABLE_DOWN}{end}", "down") for end in _PEFT_ENDS),
    ("_lora.up.weight", "up"),
    ("_lora.down.weight", "down"),
    (".lora.up.weight", "up"),
    (".lora.down.weight", "down"),
    (".lora_linear_layer.up.weight", "up"),
    (".lora_linear_layer.down.weight", "down"),
)
_OTHERS = (
    ("full", (".diff", "diff"), (".diff_b", "diff_b")),
    ("full", (".w_norm", "diff"), (".b_norm", "diff_b")),
    ("full", *((ending, "diff_b") for ending in _UP_BIAS)),
    ("loha", *((f".hada_{part}", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))),
    ("lokr", *((f".lokr_{part}", part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"))),
    ("lokr", (".lokr_t1", "t1"), (".lokr_t2", "t2")),
    ("glora", *((f".{part}.weight", part) for part in ("a1", "a2", "b1", "b2", "bm"))),
    # Programs disagree on `oft_diag` of the first LyCORIS: a rotation, or what one is made from.
    ("oft", (".oft_blocks", "blocks"), (".oft_diag", "diag"), (".rescale", "rescale")),
    ("oft_r", *((f".oft_R{end}", "numbers") for end in _PEFT_ENDS)),
    ("oft_r", (".oft_R.scaled_oft", "scaled")),
    ("ia3", (".on_input", "on_input")),
    ("ia3_l", *((f".ia3_l{end}", "gains") for end in _PEFT_ENDS)),
    ("boft_r", *((f".boft_R{end}", "stages") for end in _PEFT_ENDS)),
    ("boft_r", *((f".boft_s{end}", "row_gains") for end in _PEFT_ENDS)),
    ("set", (".set_weight", "set_weight")),
    # Beside two factors, which alone would be a LoRA.
    ("adalora", *((f".lora_E{end}", "values") for end in _PEFT_ENDS)),
    ("vera", *((f".vera_lambda_b{end}", "out_gains") for end in _PEFT_ENDS)),
    ("vera", *((f".vera_lambda_d{end}", "inner_gains") for end in _PEFT_ENDS)),
)
# Beside a layer of any kind.
_SHARED = (
    (".alpha", "alpha"),
    (".dora_scale", "dora_scale"),
    *((f".lora_magnitude_vector{end}", "magnitude") for end in _PEFT_ENDS),
    (".reshape_weight", "reshape_weight"),
)
_SUFFIXES: dict[str, tuple[str | None, str]] = {
    suffix: (kind, role)
    for kind, spellings in (
        ("lora", _LORA),
        *((kind, tuple(spellings)) for kind, *spellings in _OTHERS),
        (None, _SHARED),
    )
    for suffix, role in spellings
}
# In a Control-LoRA, and there alone, these are the factors; all else in it is a parameter, whole.
_OF_CONTROL = ("up", "down")
#: The key by which programs know a Control-LoRA, whatever lies there.
CONTROL_MARK = "lora_controlnet"
# A suffix has at most this many parts between dots.
_PARTS = 3
_ATTACHED = "_lora."  # a suffix that begins within a part

BIAS = ".bias"
_SIDES = {"up": "left", "down": "right"}
# IA3's gains have the key of an ordinary parameter: the flag beside them tells that they are gains.
_GAINS = ".weight"


@dataclass(frozen=True, slots=True)
class Module:
    """The keys of one module in an adapter file.

    Attributes:
        kind: lora, adalora, vera, full, loha, lokr, glora, oft, oft_r, boft_r, ia3, ia3_l, set; ``mixed`` for
            two of them at once.
        keys: The key by role: up, down, mid, alpha, dora_scale, magnitude, diff, and those of other
            kinds.
    """

    kind: str
    keys: Mapping[str, str]

    @property
    def is_table(self) -> bool:
        """Whether it is PEFT's LoRA of an embedding."""
        return any(is_turned(self.keys.get(role, "")) for role in ("up", "down"))

    @property
    def is_up_bias(self) -> bool:
        """Whether it is the bias that PEFT gives an up, which the layer's scale multiplies."""
        return self.kind == "full" and self.keys.get("diff", "").endswith(_UP_BIAS)


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
    def is_control(self) -> bool:
        """Whether the file is a Control-LoRA."""
        return CONTROL_MARK in self.extras

    @property
    def is_adapter(self) -> bool:
        """Whether the file is one: a checkpoint may have a name or two that end like an adapter's."""
        return self.is_control or sum(len(module.keys) for module in self.modules.values()) > len(
            self.extras
        )


def modules(keys: Iterable[str]) -> Modules:
    """Sort the keys of an adapter file into modules. Every key is in one module or in the extras."""
    roles: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    extras: dict[str, None] = {}
    known = list(keys)
    split = _split_control if CONTROL_MARK in known else _split
    for key in known:
        module, kind, role = split(key)
        if role is None or role in roles.get(module, ()):
            extras[key] = None
            continue
        roles.setdefault(module, {})[role] = key
        if kind is not None:
            kinds[module] = _joint(kinds.get(module, kind), kind)
    for module in roles.keys() - kinds.keys():  # an alpha without factors is no layer
        extras |= dict.fromkeys(roles.pop(module).values())
    for module in (name for name, kind in kinds.items() if kind == "ia3"):
        if module + _GAINS in extras:
            del extras[module + _GAINS]
            roles[module]["weight"] = module + _GAINS
    for module in (name for name, kind in kinds.items() if kind == "adalora"):
        # Of a LoRA that is made of it the factors have other keys than these.
        roles[module] = {_SIDES.get(role, role): key for role, key in roles[module].items()}
    return Modules(
        {module: Module(kinds[module], keys) for module, keys in roles.items()},
        tuple(extras),
    )


def _joint(one: str, other: str) -> str:
    """The kind of a module with keys of both."""
    if one == other or {one, other} == {"lora", "adalora"}:
        return min(one, other)
    return "mixed"


def suffix_of(kind: str, role: str) -> str:
    """Return how a role of a kind is written: the first of the spellings that are read."""
    if role == "weight":
        return _GAINS
    known = ((suffix, name) for suffix, (own, name) in _SUFFIXES.items() if own in (kind, None))
    return next(suffix for suffix, name in known if name == role)


def is_turned(key: str) -> bool:
    """Whether a factor is stored the other way round under a key: PEFT's of an embedding."""
    return _TABLE in key


def adapter_names(keys: Iterable[str]) -> list[str]:
    """Return the names of adapters that stand in PEFT's keys: a file that PEFT saved has none."""
    found = (_NAMED.search(key) for key in keys)
    return list(dict.fromkeys(match[2] for match in found if match))


def _split(key: str) -> tuple[str, str | None, str | None]:
    for end in _ends(key):
        found = _SUFFIXES.get(key[end:])
        if found is not None:
            kind, role = found
            return (key[:end] + BIAS, kind, "diff") if role == "diff_b" else (key[:end], kind, role)
    plain = _NAMED.sub(r"\1\3", key)
    return _split(plain) if plain != key else (key, None, None)


def _split_control(key: str) -> tuple[str, str | None, str | None]:
    module, _, role = key.rpartition(".")
    return (module, "lora", role) if module and role in _OF_CONTROL else (key, None, None)


def _ends(key: str) -> Iterator[int]:
    """Places in a key where a suffix may begin, behind a name."""
    end = len(key)
    for _ in range(_PARTS):
        end = key.rfind(".", 0, end)
        if end <= 0:
            break
        yield end
    attached = key.rfind(_ATTACHED)
    if attached > 0:
        yield attached
