"""Which weights of a checkpoint are written with scales, and how: as asked for, or as they are stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ...errors import ArgumentError
from ...files import MemoryFile, QuantisedSource
from ...files.quantised.encoding_gguf import GGUF_TYPES
from ...files.quantised.scheme import Scheme
from ...files.quantised.storages import SCHEMES
from ...models.architectures import UNET, Parameter, detect, parameters
from ...models.whole import stays_whole
from ...report import counted
from ...source import TensorSource
from ...text import either, plain
from .output import is_folder
from .storing import AsStored, InScheme, Storing
from .tiles import Planned

_SHOWN = 5  # names in a sentence


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of how weights are written.

    Attributes:
        to: Name of the way in which the diffusion model's matrices are stored: `fp8_scaled`; empty: as
            the checkpoint stores them.
        whole: Shell patterns of native names that stay numbers: `double_blocks.0.*`.
        quantise: Of those that do not, although they are usually left whole; `whole` goes before it.
        seed: By which numbers are rounded up or down by chance; None: to the nearest.
    """

    to: str = ""
    whole: tuple[str, ...] = ()
    quantise: tuple[str, ...] = ()
    seed: int | None = None

    def record(self) -> dict[str, str]:
        """What the metadata of a file says of it."""
        lists = {"whole": self.whole, "quantise": self.quantise}
        found = {name: json.dumps(list(patterns)) for name, patterns in lists.items() if patterns}
        if self.to:
            found["to"] = self.to
        if self.seed is not None:
            found |= {"rounding": "stochastic", "seed": str(self.seed)}
        return {f"lorakit.{name}": text for name, text in found.items()}


def with_storing(
    tensors: Mapping[str, Planned],
    checkpoint: TensorSource,
    wanted: Wanted,
    numbers: Container[str] = (),
) -> tuple[dict[str, Planned], tuple[str, ...]]:
    """Settle how the tensors of a result are stored.

    Weights that the checkpoint stores with scales stay stored so, where nothing else is asked for; one
    that changes and is stored in a way that is only read becomes numbers.

    Args:
        tensors: Of the result, by key.
        checkpoint: What it is made like.
        wanted: What is asked for.
        numbers: Keys of what is to be numbers, unless it is written as `wanted.to`.

    Returns:
        The tensors, with those that belong to stored ones, and what is worth a sentence.

    Raises:
        ArgumentError: See `plan_storing`; or what is to be quantised is named, but not how.
    """
    storing: dict[str, Storing] = {}
    left: Collection[str] = ()
    notes: list[str] = []
    check_quantise(wanted)
    if wanted.to:
        storing, left, told = plan_storing(checkpoint, tensors, wanted)
        notes += told
    if isinstance(checkpoint, QuantisedSource) and checkpoint.stays:
        free = [
            key
            for key in checkpoint.weights
            if key in tensors and key not in numbers and key not in storing and key not in left
        ]
        asked = replace(wanted, whole=()) if wanted.to else wanted
        kept, told = _kept(tensors, checkpoint, free, asked)
        storing |= kept
        notes += told
    elif not wanted.to:
        notes += pattern_notes("stays whole", wanted.whole, ())
    found = {
        key: replace(one, element=storing[key].element, storing=storing[key])
        if key in storing
        else one
        for key, one in tensors.items()
    }
    marked = _marked(storing, wanted.to)
    return found | _loose(found, checkpoint) | marked, tuple(notes)


def _kept(
    tensors: Mapping[str, Planned],
    checkpoint: QuantisedSource,
    keys: Iterable[str],
    wanted: Wanted,
) -> tuple[dict[str, Storing], list[str]]:
    """Those weights that stay stored as they are, by key, and what is worth a sentence."""
    found: dict[str, Storing] = {}
    lost: dict[str, list[str]] = {}
    whole: list[str] = []
    new: list[tuple[str, bool]] = []
    places: dict[str, list[Parameter]] = {}
    for one in parameters(checkpoint).values():
        for key in one.keys:
            places.setdefault(key, []).append(one)
    for key in keys:
        names = [one.name.removeprefix(UNET) for one in places[key]]
        if any(fits(name, wanted.whole) for name in names):
            whole += names
            continue
        planned, weight = tensors[key], checkpoint.weights[key]
        storing = AsStored(places[key][0], weight, checkpoint.original)
        is_copy = not planned.steps and storing.held(planned.source, planned.own) is not None
        if is_copy or storing.is_writable:
            found[key] = storing
            if not is_copy:
                new.append((storing.storage, storing.by_chance))
        else:
            lost.setdefault(weight.storage, []).append(key)
    storages = Counter(one.storage for one in found.values())
    return found, [
        *_notes(storages, len(new), lost),
        *nearest_notes(wanted, new),
        *pattern_notes("stays whole", wanted.whole, whole),
    ]


def _notes(found: Mapping[str, int], new: int, lost: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if found:
        told = ", ".join(f"{count} as {storage}" for storage, count in found.items())
        yield (
            f"{counted(sum(found.values()), 'weight')} stored as the checkpoint has them: {told}; "
            f"{new} of them {'changes and is' if new == 1 else 'change and are'} encoded anew"
        )
    for storage, keys in lost.items():
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield (
            f"{counted(len(keys), 'weight')} stored as {storage}, which is only read, written as "
            f"numbers: {', '.join(f'`{plain(key)}`' for key in keys[:_SHOWN])}{more}"
        )


def _loose(tensors: Mapping[str, Planned], checkpoint: TensorSource) -> dict[str, Planned]:
    """Tensors that go with weights which stay stored as they are, and belong to none of them."""
    kept = [key for key, one in tensors.items() if isinstance(one.storing, AsStored)]
    if not kept or not isinstance(checkpoint, QuantisedSource):
        return {}
    file = checkpoint.original
    same = {k for k, one in tensors.items() if one.is_copy and one.source is checkpoint}
    return {k: Planned(k, file, k, file.element(k)) for k in checkpoint.loose(kept, same)}


def _marked(storing: Mapping[str, Storing], to: str) -> dict[str, Planned]:
    """Tensors that say that there are weights which are stored as was asked for."""
    keys = [key for key, one in storing.items() if isinstance(one, InScheme)]
    marks = MemoryFile("markers", SCHEMES[to].markers(keys) if keys else {})
    return {k: Planned(k, marks, k, marks.element(k)) for k in marks.keys()}  # noqa: SIM118


def model_keys(checkpoint: TensorSource) -> set[str]:
    """The keys of a checkpoint's models: not of what belongs to none, such as a noise schedule."""
    known = parameters(checkpoint).values()
    return {key for one in known if one.component != "other" for key in one.keys}


def kept_metadata(tensors: Mapping[str, Planned], checkpoint: TensorSource) -> dict[str, str]:
    """What a checkpoint's metadata says of those weights that stay stored as they are.

    Args:
        tensors: From `with_storing`.
        checkpoint: What the result is made like.
    """
    if not isinstance(checkpoint, QuantisedSource):
        return {}
    return checkpoint.told([k for k, one in tensors.items() if isinstance(one.storing, AsStored)])


def plan_storing(
    checkpoint: TensorSource, keys: Container[str], wanted: Wanted
) -> tuple[dict[str, Storing], set[str], Iterator[str]]:
    """Find the weights that are written with scales: matrices of the diffusion model.

    What stays whole: other components, weights that lie fused, split or turned in the file, or under
    other names than those of the model's own program, and those of `stays_whole`.

    Args:
        checkpoint: What the result is made like.
        keys: Of the result.
        wanted: What is asked for, with a way to store them.

    Returns:
        How weights are written, by key; the keys of matrices that stay whole; and what is worth a
        sentence.

    Raises:
        ArgumentError: No weight can be written so, or there is no such way.
    """
    to = wanted.to
    if to not in SCHEMES:
        raise ArgumentError(f"the storage `{plain(to)}` is {either([*SCHEMES, *GGUF_TYPES])}")
    if is_folder(checkpoint):
        raise ArgumentError(
            f"{checkpoint.name} is a folder of diffusers, which does not load `{to}`; give a single file"
        )
    known = parameters(checkpoint)
    model = detect(known)
    name_of_model = model.name if model else None
    uses = Counter(key for one in known.values() for key in one.keys)
    found: dict[str, Storing] = {}
    left: list[Parameter] = []
    for one in known.values():
        name = one.name.removeprefix(UNET)
        is_matrix = len(one.shape) == 2 and name != one.name and name.endswith(".weight")
        if not is_matrix or one.key not in keys:
            continue
        is_plain = uses[one.key] == 1 and one.key.endswith(name) and not one.transposed
        usually = stays_whole(name, name_of_model) and not fits(name, wanted.quantise)
        can = is_plain and SCHEMES[to].fits(one.shape)
        if not can or usually or fits(name, wanted.whole):
            left.append(one)
        else:
            found[one.key] = InScheme(one, SCHEMES[to])
    if not found:
        why = (
            ", and all stay whole by `whole=`"
            if any(fits(name, wanted.whole) for name in _names(left))
            else ""
        )
        raise ArgumentError(
            f"{checkpoint.name} has no weight to write as `{to}`: those are matrices of a diffusion "
            f"model, under the names of its own program{why}"
        )
    notes = _storing_notes(
        SCHEMES[to].storage, [one.parameter for one in found.values()], left, wanted
    )
    return found, {key for one in left for key in one.keys}, notes


def _storing_notes(
    storage: str, found: Sequence[Parameter], left: Sequence[Parameter], wanted: Wanted
) -> Iterator[str]:
    stored, whole = _names(found), _names(left)
    stay = f"; {len(whole)} stay whole, the first `{whole[0]}`" if whole else ""
    yield f"{counted(len(stored), 'weight')} written as {storage}{stay}"
    yield from nearest_note(wanted, SCHEMES[wanted.to])
    yield from pattern_notes("stays whole", wanted.whole, whole)
    yield from pattern_notes("is quantised", wanted.quantise, stored)


def _names(some: Iterable[Parameter]) -> list[str]:
    return [one.name.removeprefix(UNET) for one in some]


def pattern_notes(what: str, patterns: Iterable[str], names: Collection[str]) -> Iterator[str]:
    """Name the patterns by which nothing is decided.

    Args:
        what: They decide of a weight.
        patterns: Shell patterns.
        names: Of the weights of which that is so.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            yield f"no weight {what} by the pattern `{plain(pattern)}`"


def nearest_note(wanted: Wanted, scheme: Scheme | None) -> Iterator[str]:
    """Say where chance is asked for in vain."""
    if scheme is not None:
        yield from nearest_notes(wanted, [(scheme.storage, scheme.by_chance)])


def nearest_notes(wanted: Wanted, storages: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """Say where chance is asked for in vain.

    Args:
        wanted: What is asked for.
        storages: Of the weights that are encoded, and whether each follows chance.
    """
    if wanted.seed is not None:
        for storage in dict.fromkeys(name for name, by_chance in storages if not by_chance):
            yield f"{storage} is always rounded to the nearest"


def check_quantise(wanted: Wanted) -> None:
    """Raise an `ArgumentError` where what is to be quantised is named, but not how."""
    if wanted.quantise and not wanted.to:
        raise ArgumentError(
            "what is to be quantised is named, but not how; name a storage, such as `fp8_scaled`"
        )


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of some shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
