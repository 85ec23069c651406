"""What a conversion does to each name: which layers of the input make which layer of the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from ...errors import ArgumentError, TargetMismatchError, UnsupportedLayerError
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.architectures import TE, ModelRows
from ...report import counted
from ..adapter import Adapter
from ..formats import (
    BIAS,
    CONTROL,
    KOHYA,
    PEFT,
    Format,
    ModelNames,
    format_of,
    is_turned,
    module_keys,
    saved_parameters,
    table_keys,
)
from ..model import TELL_THE_MODEL

# Roles that a format spells in its own way; others have one suffix wherever they are known.
_SPELLED = ("up", "down", "mid", "alpha", "diff", "dora_scale", "magnitude")

# Formats whose loaders know the kind that a role is of; other roles are known to all, or to those
# that read an alpha.
_LOADERS: dict[str, tuple[str, ...]] = {
    "diff": ("kohya", "comfy"),
    "set_weight": ("comfy",),
    "reshape_weight": ("comfy",),
    "on_input": ("kohya",),
    **dict.fromkeys(("numbers", "gains", "stages"), ()),
    "scaled": (),
}
# What a role is called, and the way out, where that is not to make the layer a LoRA.
_WAYS_OUT = {
    "diff": (
        "full differences",
        "use format `comfy` or `kohya`, `allow_partial=True`, which leaves full differences out, or, if "
        'it is of a matrix, convert it `to="lora"`',
    ),
    "reshape_weight": ("a weight that grows", "use format `comfy`"),
}


@dataclass(frozen=True, slots=True)
class RenamedLayer:
    """One layer of the result.

    Attributes:
        module: Its name in the result.
        place: The rows of the model that it changes.
        members: The layers of the input that change these rows, with all the rows that each of
            them changes, from the first row to the last.
        keys: Its keys by role.
    """

    module: str
    place: ModelRows
    members: tuple[tuple[str, ModelRows], ...]
    keys: Mapping[str, str]

    @property
    def is_cut(self) -> bool:
        """Whether a layer of the input changes more rows than these."""
        at = self.place
        return any(one.start < at.start or one.stop > at.stop for _, one in self.members)

    @property
    def is_joined(self) -> bool:
        """Whether it has rows of several layers of the input, or rows that none of them changes."""
        return len(self.members) > 1 or self.is_incomplete

    @property
    def is_incomplete(self) -> bool:
        """Whether no layer of the input changes some of these rows."""
        return self.covered < 1

    @property
    def covered(self) -> Fraction:
        """The share of these rows that some layer of the input changes."""
        at = self.place
        rows = (min(one.stop, at.stop) - max(one.start, at.start) for _, one in self.members)
        return sum(rows, Fraction(0)) / (at.stop - at.start)


def planned(adapter: Adapter, format: Format, names: ModelNames) -> list[RenamedLayer]:
    """Return the layers of the result, in the order of the input.

    Args:
        adapter: Of any naming scheme.
        format: The format of the result.
        names: Of the model that it is for.

    Raises:
        ArgumentError: A name cannot be found in the model.
        TargetMismatchError: Two layers change the same rows.
        UnsupportedLayerError: The format has no name for a layer, or no place for its kind.
    """
    if format == CONTROL:  # which only its own files have: nothing moves
        rows = ((module, ModelRows(module)) for module in adapter.layers)
        return [RenamedLayer(one[0], one[1], (one,), adapter.keys[one[0]]) for one in rows]
    groups: dict[str, list[tuple[str, ModelRows]]] = {}
    for module, place in _places(adapter, format, names).items():
        groups.setdefault(place.native, []).append((module, place))
    if format == PEFT:
        _check_one_model(groups)
    pieces: list[RenamedLayer] = []
    for native, members in groups.items():
        members.sort(key=lambda member: member[1].start)
        for (one, at), (other, behind) in pairwise(members):
            if behind.start < at.stop:
                raise TargetMismatchError(
                    f"layers `{one}` and `{other}` change the same rows of `{native}`; "
                    "remove one of them",
                    target=other,
                )
        pieces += _pieces(adapter, format, names, native, members)
    _check_names(pieces)
    return pieces


def unplaced(adapter: Adapter, format: Format, names: ModelNames) -> list[str]:
    """Return the layers of an adapter that a format has no place for, of those that may be left out.

    These are full differences, and layers on modules that no program reads in that format.

    Args:
        adapter: In any naming scheme; nothing is left out if nothing else would remain.
        format: The format of the result.
        names: Of the model that it is for.
    """

    def has_no_place(target: str) -> bool:
        held, place = _keys(adapter, target).keys(), names.place(target)
        is_difference = "diff" in held and "up" not in held
        return (is_difference and format.name not in _LOADERS["diff"]) or (
            place is not None and names.is_unadapted(format, place.native)
        )

    found = [target for target in adapter.layers if has_no_place(target)]
    return found if len(found) < len(adapter.layers) else []


def convert_notes(
    adapter: Adapter, pieces: Sequence[RenamedLayer], rule: RankRule | Budget | None
) -> Iterator[str]:
    """Yield notes on why there are more layers, or fewer, than before."""
    cut = [piece for piece in pieces if piece.is_cut]
    joined = [piece for piece in pieces if piece.is_joined]
    if cut:
        whole = {module for piece in cut for module, _ in piece.members}
        yield (
            f"{counted(len(whole), 'fused layer')} became {len(cut)}: this format has their rows "
            "in several modules"
        )
    if joined:
        parts = sum(len(piece.members) for piece in joined)
        rank = "" if rule is None else f" at {rule}"
        yield f"{counted(parts, 'layer')} became {len(joined)}{rank}: this format has them fused"
    incomplete = sum(piece.is_incomplete for piece in pieces)
    if incomplete:
        yield f"{counted(incomplete, 'fused layer')} had no change for some rows, which stay as they are"
    if len(pieces) != len(adapter.layers):
        yield f"{len(adapter.layers)} layers in, {len(pieces)} layers out"
    saved = [key for one in saved_parameters(adapter.extras).values() for key in one.keys.values()]
    if saved:
        yield (
            f"{counted(len(saved), 'trained parameter')} beside the layers, the first `{saved[0]}`: "
            "carried, but PEFT alone reads them; `bake()` applies them"
        )


def is_packed(names: ModelNames, shape: Sequence[int], place: ModelRows) -> bool:
    """Whether rows of a fused projection are as many as the table says.

    The first part of every packing is a projection of queries or keys from the width of the model
    to the same width: it must be square.

    Args:
        names: Of the model.
        shape: Of these rows, (rows, in).
        place: Which rows they are.
    """
    parts = names.packing(place.native)
    if len(parts) < 2 or len(shape) < 2:
        return True
    first = parts[0]
    return shape[0] * (first.stop - first.start) == shape[1] * (place.stop - place.start)


def _places(adapter: Adapter, format: Format, names: ModelNames) -> dict[str, ModelRows]:
    found: dict[str, ModelRows] = {}
    lost: list[str] = []
    for module in adapter.layers:
        place = names.place(module)
        if place is None and format_of(module) == format:
            place = ModelRows(module)  # the name stays: what it means does not matter
        if place is None:
            lost.append(module)
        else:
            found[module] = place
    if lost:
        known = names.architecture
        title = "an unknown model" if known is None else known.title
        raise ArgumentError(
            f"{counted(len(lost), 'layer')} of {len(adapter.layers)} cannot be found in {title}, "
            f"the first is `{lost[0]}`; {TELL_THE_MODEL}",
            target=lost[0],
        )
    return found


def _check_one_model(targets: Iterable[str]) -> None:
    """Refuse targets of several models: a PEFT folder is of one."""
    first: dict[str, str] = {}
    for target in targets:
        parts = target.split(".")
        first.setdefault(".".join(parts[: 2 if target.startswith(TE) else 1]), target)
    if len(first) > 1:
        one, other, *_ = first.values()
        raise UnsupportedLayerError(
            f"format `peft` has no name for `{other}` beside `{one}`: a folder of it is of one "
            "model; convert the layers of each by themselves, or use format `comfy`",
            target=other,
        )


def _pieces(
    adapter: Adapter,
    format: Format,
    names: ModelNames,
    native: str,
    members: Sequence[tuple[str, ModelRows]],
) -> Iterator[RenamedLayer]:
    opaque = members[0][0] == native and format_of(native) == format
    spelled = ((native, ModelRows(native)),) if opaque else names.spelled(format, native)
    for module, at in spelled:
        mine = tuple(one for one in members if one[1].start < at.stop and one[1].stop > at.start)
        if mine:
            known = {role: key for one, _ in mine for role, key in _keys(adapter, one).items()}
            yield RenamedLayer(module, at, mine, _spelled_keys(format, module, mine[0][0], known))


def _keys(adapter: Adapter, target: str) -> dict[str, str]:
    """The suffix of each key that the file has of a layer, by role."""
    keys = adapter.keys.get(target)
    if keys is None:
        return {role: f".{role}" for role in adapter.layers[target].tensors()}
    module = adapter.module(target)
    return {role: key.removeprefix(module) for role, key in keys.items()}


def _spelled_keys(
    format: Format, module: str, target: str, suffixes: Mapping[str, str]
) -> dict[str, str]:
    """The keys of a layer in a format.

    Raises:
        UnsupportedLayerError: The format has no place for one of the roles.
    """
    found = module_keys(format, module)
    if "mid" in suffixes:
        roles = zip(("up", "down", "mid"), format.tucker, strict=True)
        found |= {role: module + suffix for role, suffix in roles}
    if format == PEFT and is_turned(suffixes.get("up", "")):
        found |= table_keys(module)
    if suffixes.keys() & {"dora_scale", "magnitude"}:
        found |= {"dora_scale": f"{module}.dora_scale"}
        found |= {"magnitude": f"{module}.lora_magnitude_vector"}
    others = [role for role in suffixes if role not in _SPELLED]
    lost = [role for role in others if format.name not in _LOADERS.get(role, (format.name,))]
    if not format.keeps_alpha:
        lost += [role for role in suffixes if role == "mid" or role in others]
    if "diff" in suffixes and "up" not in suffixes and format.name not in _LOADERS["diff"]:
        lost.append("diff")
    if suffixes.get("diff", "").endswith("_norm") and format == KOHYA:
        # LyCORIS loads the differences of norms by this name alone.
        found["diff"] = module.removesuffix(BIAS) + (
            ".b_norm" if module.endswith(BIAS) else ".w_norm"
        )
    if lost:
        what, way = _WAYS_OUT.get(lost[0], (f"`{suffixes[lost[0]]}`", 'convert it `to="lora"`'))
        raise UnsupportedLayerError(
            f"format `{format.name}` has no place for {what}, which layer `{target}` is stored as; "
            f"{way}",
            target=target,
        )
    found |= {role: module.removesuffix(BIAS) + suffixes[role] for role in others}
    either = {"dora_scale", "magnitude", "alpha"}  # which of the two depends on the format
    return {role: key for role, key in found.items() if role in suffixes or role in either}


def _check_names(pieces: Sequence[RenamedLayer]) -> None:
    seen: dict[str, RenamedLayer] = {}
    for piece in pieces:
        other = seen.setdefault(piece.module, piece)
        if other is not piece:
            raise TargetMismatchError(
                f"layers `{other.members[0][0]}` and `{piece.members[0][0]}` would both be called "
                f"`{piece.module}`; remove one of them",
                target=piece.members[0][0],
            )
