"""What a program makes of a file: which layers it loads, at what scale, and what it leaves out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...adapters.formats import BIAS, PEFT_CONFIG, title_of
from ...errors import LayerShapeError
from ...report import counted
from .known import State, known
from .magnitudes import are_applied
from .programs import CONTROL_PAIRS, PAIRS, Blocks, Program, Route
from .subject import Part, Subject

#: The role whose key makes a program look for the others.
_LEADS = {"loha": "w1_a", "glora": "a1"}
NAME = "does not know the name"
_PAIRS = {**PAIRS, **CONTROL_PAIRS}
_PAIR = ("up", "down", "alpha")


@dataclass(frozen=True, slots=True)
class Read:
    """What becomes of one module.

    Attributes:
        state: Whether it loads; ``perhaps`` where that depends on the model, which is not here.
        reason: Why not, in words for people; the same words for the same reason.
        scale: The scale at which it takes effect; 0 where it does not load.
        unread: Keys that are passed over.
    """

    state: State
    reason: str = ""
    scale: float = 0.0
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a file in one program.

    Attributes:
        program: Its name.
        title: Its name for sentences.
        layers: How many modules there are.
        reads: By module.
        refused: Why nothing loads, although names are known; empty where something does.
        unread: Keys that belong to no module, and are passed over.
    """

    program: str
    title: str
    layers: int
    reads: Mapping[str, Read] = field(default_factory=dict[str, Read])
    refused: str = ""
    unread: tuple[str, ...] = ()

    def count(self, state: State) -> int:
        """How many modules are in this state; if the file is refused, none of them loads."""
        if self.refused:
            return self.layers if state == "left" else 0
        return sum(read.state == state for read in self.reads.values())

    @property
    def scales(self) -> dict[float, int]:
        """How many layers take effect at each scale, in order."""
        if self.refused:
            return {}
        found = Counter(read.scale for read in self.reads.values() if read.state != "left")
        return dict(sorted(found.items()))

    @property
    def summary(self) -> str:
        """How many layers load, and at what scale, in words."""
        if self.refused:
            return f"none of {counted(self.layers, 'layer')} loads: it stops with an error"
        perhaps = self.count("perhaps")
        sure = self.count("loads")
        loads = f"{sure or perhaps} of {counted(self.layers, 'layer')} load"
        if perhaps:
            loads += f", and {perhaps} more" if sure else ""
            loads += " if the model has them"
        scales = list(self.scales)
        if not scales:
            return loads
        if len(scales) == 1:
            return f"{loads}, at scale {scales[0]:g}"
        return f"{loads}, at scales from {scales[0]:g} to {scales[-1]:g}"

    @property
    def left(self) -> tuple[str, ...]:
        """All keys that the program passes over."""
        keys = [key for read in self.reads.values() for key in read.unread]
        return (*keys, *self.unread)


def verdict(file: Subject, program: Program) -> Verdict:
    """Say what a program makes of a file."""
    if file.is_control:
        return _of_control(file, program)
    architecture = file.architecture
    routes = program.routes_of(architecture.name if architecture is not None else None)
    if not routes and architecture is None:
        routes = (_any_of(program),)
    if file.spelling and file.spelling not in program.legacy:
        reason = f"does not know the names of {file.spelling}"
        return _nothing(file, program, reason)
    if not routes:
        title = architecture.title if architecture is not None else ""
        return _nothing(file, program, f"has no loader for adapters of {title}")
    route = next(route for route in routes if _is_taken(route, file))
    reads = {part.name: _read(part, file, route) for part in file.parts}
    refused = _refused(file, program, route, reads)
    return Verdict(program.name, program.title, len(file.parts), reads, refused, file.extras)


def _of_control(file: Subject, program: Program) -> Verdict:
    route = program.control
    if route is None:
        return _nothing(file, program, "does not read Control-LoRAs")
    reads = {part.name: _read(part, file, route) for part in file.parts}
    refused = _refused(file, program, route, reads)
    names = {part.name for part in file.parts}
    ends = tuple(route.ends_beside)
    beside = [key for key in file.extras if key.endswith(ends) and key.rpartition(".")[0] in names]
    unread = (*file.strange, *beside)
    return Verdict(program.name, program.title, len(file.parts), reads, refused, unread)


def _nothing(file: Subject, program: Program, reason: str) -> Verdict:
    left = {part.name: Read("left", reason, 0.0, tuple(part.keys.values())) for part in file.parts}
    return Verdict(program.name, program.title, len(file.parts), left, unread=file.extras)


def _any_of(program: Program) -> Route:
    """All routes of the program at once, for a model that is not known."""
    routes = [route for routes in program.routes.values() for route in routes]
    return Route(
        schemes=tuple(scheme for route in routes for scheme in route.schemes),
        pairs=tuple(PAIRS),
        kinds=tuple(kind for route in routes for kind in route.kinds),
    )


def _is_taken(route: Route, file: Subject) -> bool:
    if route.spelling not in ("", file.spelling):
        return False
    if route.every:
        every = re.compile(route.every)
        return all(every.search(key) for key in file.keys if not key.endswith(".dora_scale"))
    return _any_fits(route.when, file) and _any_fits(route.besides, file)


def _any_fits(pattern: str, file: Subject) -> bool:
    """Whether a key has something that fits a regular expression."""
    found = re.compile(pattern)
    return any(found.search(key) for key in file.keys)


def _read(part: Part, file: Subject, route: Route) -> Read:
    keys = tuple(part.keys.values())
    state = known(part.name, route, file)
    if state == "left" or (state == "perhaps" and part.stranger):
        return Read("left", NAME, 0.0, keys)
    if part.kind == "full" and all(re.search(route.biases, key) for key in keys):
        return Read(state, "", 1.0)
    if route.drops and re.search(route.drops, keys[0]):
        return Read("left", "does not read such layers", 0.0, keys)
    if part.is_up_bias and route.up_bias:
        return Read(state, "", 1.0)
    if part.is_up_bias:
        return Read("left", "does not read the bias of up", 0.0, keys)
    pair_alone = part.kind == "mixed" and "mixed" not in route.kinds and "up" in part.keys
    if part.kind not in route.kinds and not pair_alone:
        return Read("left", f"does not know the kind {title_of(part.kind)}", 0.0, keys)
    if part.kind in route.bounded and "alpha" not in part.keys:
        return Read("left", f"fails on the kind {title_of(part.kind)} without an alpha", 0.0, keys)
    if part.is_incomplete:
        return Read("left", "cannot use an incomplete layer", 0.0, keys)
    if part.kind == "lora" and not _is_pair(part, route):
        return Read("left", "does not know the ending of the names", 0.0, keys)
    if isinstance(part.trouble, LayerShapeError):
        return Read("left", "fails on factors that do not fit together", 0.0, keys)
    if "dora_scale" not in route.ignores and not are_applied(part):
        return Read("left", "cannot use magnitudes of DoRA of such a shape", 0.0, keys)
    bias = part.name.endswith(BIAS)
    if bias and part.place is not None and not part.place.is_whole:
        return Read("left", "has no bias for a part of the rows", 0.0, keys)
    unread = [part.keys[role] for role in route.ignores if role in part.keys]
    if "mid" in part.keys and not part.keys.get("up", "").endswith(".lora_up.weight"):
        unread.append(part.keys["mid"])
    if route.alpha == "ignored" and "alpha" in part.keys:
        unread.append(part.keys["alpha"])
    if pair_alone:
        unread += [key for role, key in part.keys.items() if role not in _PAIR]
    return Read(state, "", _scale(part, file, route), tuple(unread))


def _scale(part: Part, file: Subject, route: Route) -> float:
    """The scale at which a program applies a layer."""
    if route.alpha == "ignored":
        return 1.0
    common = _common_alpha(file) if route.common_alpha else None
    own = part.alpha is not None and not re.search(route.common_alpha, part.name)
    if common is not None and part.rank and not own:
        return common / part.rank
    beside = PEFT_CONFIG in file.source.metadata  # only PEFT reads this file
    return part.scale if route.configured and not beside else part.stored_scale


def _common_alpha(file: Subject) -> float | None:
    """The alpha that most layers have; the first of equally many."""
    alphas = Counter(part.alpha for part in file.parts if part.alpha is not None)
    return alphas.most_common(1)[0][0] if alphas else None


def _is_pair(part: Part, route: Route) -> bool:
    up, down = (part.keys.get(role, "").removeprefix(part.name) for role in ("up", "down"))
    return up in route.pairs and _PAIRS[up] == down


def _is_half(part: Part) -> bool:
    """Whether it has the key by which programs know its kind, but lacks others that they need."""
    if part.kind == "lora" and "up" in part.keys:
        ending = part.keys["up"].removeprefix(part.name)
        other = part.keys.get("down", "").removeprefix(part.name)
        return ending in _PAIRS and other != _PAIRS[ending]
    return part.is_incomplete and _LEADS.get(part.kind) in part.keys


def _refused(file: Subject, program: Program, route: Route, reads: Mapping[str, Read]) -> str:
    """Why a program stops with an error; empty where it does not."""
    if file.odd_alphas:
        return f"`{file.odd_alphas[0]}` is not one number"
    refused = [key for key in file.keys if route.refuses and re.search(route.refuses, key)]
    if refused:
        return f"`{refused[0]}` is left over"
    for what, pattern in route.asks.items():
        if not _any_fits(pattern, file):
            return f"it needs a {what}, and there is none"
    if route.float_alphas and file.whole_alphas:
        return f"`{file.whole_alphas[0]}` is an integer"
    if route.alpha == "refused" and file.alphas:
        return f"it does not know alphas in such a file: `{file.alphas[0]}`"
    if route.alpha == "needed":
        for part in file.parts:
            if "alpha" not in part.keys and reads[part.name].state != "left":
                return f"layer `{part.name}` has no alpha"
    for part in file.parts if program.stops else ():
        if _is_half(part) and known(part.name, route, file) != "left":
            return f"layer `{part.name}` is incomplete"
    missing = next((name for one in route.blocks for name in _missing(one, file)), None)
    if missing is not None:
        return f"layer `{missing}` is missing, and it does not go on without"
    left = _left_over(file, route, reads) if route.strict else ()
    if left:
        return f"`{left[0]}` is left over"
    if route.needs_lora:
        odd = [key for key in file.keys if "lora" not in key and not key.endswith(".dora_scale")]
        if odd:
            return f"`{odd[0]}` does not have `lora` in its name"
    return ""


def _missing(blocks: Blocks, file: Subject) -> Iterator[str]:
    """Layers that blocks have in the program, and not in the file."""
    if not all(_any_fits(one, file) for one in blocks.where):
        return
    names = {part.name for part in file.parts}
    before, _, behind = blocks.prefix.partition("{}")
    numbered = re.compile(re.escape(before) + r"(\d+)" + re.escape(behind))
    numbers = {found[1] for name in names if (found := numbered.match(name))}
    for number in range(blocks.count or len(numbers)):
        wanted = (blocks.prefix.format(number) + module for module in blocks.modules)
        yield from (name for name in wanted if name not in names)


def _left_over(file: Subject, route: Route, reads: Mapping[str, Read]) -> list[str]:
    """Keys that a strict conversion stops at."""
    drops = re.compile(route.drops or "$^")
    ignored = tuple(f".{role}" for role in route.ignores)
    unread = [
        key
        for read in reads.values()
        if route.strict == "all" or read.reason != NAME
        for key in read.unread
    ]
    return [
        key
        for key in (*unread, *file.extras)
        if not drops.search(key) and not key.endswith(ignored)
    ]
