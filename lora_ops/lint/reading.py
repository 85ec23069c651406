"""What a program makes of a file: which layers it loads, at what scale, and what it leaves out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..architectures import ENCODERS, UNET
from ..errors import LayerShapeError
from ..formats import BIAS, PEFT_CONFIG, ModelNames, title_of
from ..formats.names import underscored
from ..report import counted
from .programs import PAIRS, Program, Route, Scheme
from .subject import Part, Subject

State = Literal["loads", "perhaps", "left"]
#: The role whose key makes a program look for the others.
_LEADS = {"loha": "w1_a", "glora": "a1"}
NAME = "does not know the name"
_PAIR = ("up", "down", "alpha")
_WHOLE = ("text_projection", "embeddings.token_embedding", "embeddings.position_embedding")


@dataclass(frozen=True, slots=True)
class Read:
    """What becomes of one module.

    Attributes:
        state: Whether it loads; ``perhaps`` where that depends on the model, which is not here.
        reason: Why not, in words for people; the same words for the same reason.
        scale: At which it takes effect; 0 where it does not load.
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
        """How many modules are in that state; none loads of a file that is refused."""
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
    route = next(route for route in routes if _is_taken(route, file.keys))
    reads = {part.name: _read(part, file, route) for part in file.parts}
    refused = _refused(file, program, route, reads)
    return Verdict(program.name, program.title, len(file.parts), reads, refused, file.extras)


def _nothing(file: Subject, program: Program, reason: str) -> Verdict:
    left = {part.name: Read("left", reason, 0.0, tuple(part.keys.values())) for part in file.parts}
    return Verdict(program.name, program.title, len(file.parts), left, unread=file.extras)


def _any_of(program: Program) -> Route:
    """All ways at once, for a model that is not known."""
    routes = [route for routes in program.routes.values() for route in routes]
    return Route(
        schemes=tuple(scheme for route in routes for scheme in route.schemes),
        pairs=tuple(PAIRS),
        kinds=tuple(kind for route in routes for kind in route.kinds),
    )


def _is_taken(route: Route, keys: tuple[str, ...]) -> bool:
    if route.every:
        every = re.compile(route.every)
        return all(every.search(key) for key in keys if not key.endswith(".dora_scale"))
    when = re.compile(route.when)
    return any(when.search(key) for key in keys)


def _read(part: Part, file: Subject, route: Route) -> Read:
    keys = tuple(part.keys.values())
    state = _known(part.name, route, file)
    if state == "left" or (state == "perhaps" and part.stranger):
        return Read("left", NAME, 0.0, keys)
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
    bias = part.name.endswith(BIAS)
    if bias and part.place is not None and not part.place.is_whole:
        return Read("left", "has no bias for a part of the rows", 0.0, keys)
    unread = [part.keys[role] for role in route.ignores if role in part.keys]
    if "mid" in part.keys and not part.keys["up"].endswith(".lora_up.weight"):
        unread.append(part.keys["mid"])
    if pair_alone:
        unread += [key for role, key in part.keys.items() if role not in _PAIR]
    return Read(state, "", _scale(part, file, route), tuple(unread))


def _scale(part: Part, file: Subject, route: Route) -> float:
    """The scale at which a program applies a layer."""
    common = _common_alpha(file) if route.common_alpha else None
    own = part.alpha is not None and not re.search(route.common_alpha, part.name)
    if common is not None and part.rank and not own:
        return common / part.rank
    beside = PEFT_CONFIG in file.source.metadata  # which PEFT alone looks at
    return part.scale if route.configured and not beside else part.stored_scale


def _common_alpha(file: Subject) -> float | None:
    """The alpha that most layers have; the first of equally many."""
    alphas = Counter(part.alpha for part in file.parts if part.alpha is not None)
    return alphas.most_common(1)[0][0] if alphas else None


def _is_pair(part: Part, route: Route) -> bool:
    up, down = (part.keys.get(role, "").removeprefix(part.name) for role in ("up", "down"))
    return up in route.pairs and PAIRS[up] == down


def _is_half(part: Part) -> bool:
    """Whether it has the key by which programs know the kind, and not all that they then ask for."""
    if part.kind == "lora" and "up" in part.keys:
        ending = part.keys["up"].removeprefix(part.name)
        other = part.keys.get("down", "").removeprefix(part.name)
        return ending in PAIRS and other != PAIRS[ending]
    return part.is_incomplete and _LEADS.get(part.kind) in part.keys


def _known(module: str, route: Route, file: Subject) -> State:
    """Whether a name is one that a program knows for this model."""
    name = module.removesuffix(BIAS)
    architecture = file.architecture
    short = architecture.name if architecture is not None else ""
    found: State = "left"
    for scheme in route.schemes:
        fits = not scheme.of or not short or short in scheme.of
        if fits and name.startswith(scheme.prefix) and all(k in file.keys for k in scheme.needs):
            state = _spelled(scheme, name.removeprefix(scheme.prefix), file.names)
            if state == "loads":
                return state
            found = state if state == "perhaps" else found
    return found


def _spelled(scheme: Scheme, inner: str, names: ModelNames) -> State:
    if scheme.flat and "." in inner:
        return "left"
    if scheme.only and not re.fullmatch(scheme.only, inner):
        return "left"
    if scheme.but and re.search(scheme.but, inner):
        return "left"
    if scheme.names == "any":
        return "loads"
    if scheme.names == "encoder":
        return _of_encoder(inner)
    if names.architecture is None:
        return "perhaps"
    if scheme.names == "processor":
        return _with_processor(inner, names)
    table = names.modules
    place = table.find(inner)
    if place is None:
        # Of a variant of the model, or of none: only where nothing else begins so.
        variant = scheme.names == "native" and scheme.prefix and not inner.startswith(("_", UNET))
        return "perhaps" if variant else "left"
    if scheme.names == "native":
        return "loads" if table.foreign_parts(inner) else "left"
    return "loads" if _is_foreign(inner, names) else "left"


def _is_foreign(inner: str, names: ModelNames) -> bool:
    """Whether a module has this name in diffusers; it may be the native one as well."""
    parts = names.modules.foreign_parts(inner)
    return not parts or any(underscored(name) == underscored(inner) for name, _ in parts)


def _with_processor(inner: str, names: ModelNames) -> State:
    if ".processor.to_" in inner:
        inner = inner.replace(".processor.to_", ".to_")
        inner += ".0" if inner.endswith(".to_out") else ""
    elif ".to_" in inner:
        return "left"
    known = names.modules.find(inner) is not None and _is_foreign(inner, names)
    return "loads" if known else "left"


def _of_encoder(inner: str) -> State:
    name = inner.partition("transformer.")[2]
    return "loads" if ENCODERS.find(name) is not None or name.endswith(_WHOLE) else "perhaps"


def _refused(file: Subject, program: Program, route: Route, reads: Mapping[str, Read]) -> str:
    """Why a program stops with an error; empty where it does not."""
    alphas = [part.keys["alpha"] for part in file.parts if "alpha" in part.keys]
    shapes = [key for key in alphas if any(size != 1 for size in file.source.shape(key))]
    if shapes:
        return f"`{shapes[0]}` is not one number"
    refused = [key for key in file.keys if route.refuses and re.search(route.refuses, key)]
    if refused:
        return f"`{refused[0]}` is left over"
    integers = [key for key in alphas if not file.source.dtype(key).is_floating_point]
    if route.float_alphas and integers:
        return f"`{integers[0]}` is an integer"
    if route.alpha == "refused" and alphas:
        return f"it does not know alphas in such a file: `{alphas[0]}`"
    if route.alpha == "needed":
        for part in file.parts:
            if "alpha" not in part.keys and reads[part.name].state != "left":
                return f"layer `{part.name}` has no alpha"
    for part in file.parts if program.stops else ():
        if _is_half(part) and _known(part.name, route, file) != "left":
            return f"layer `{part.name}` is incomplete"
    left = _left_over(file, route, reads) if route.strict else ()
    if left:
        return f"`{left[0]}` is left over"
    if route.needs_lora:
        odd = [key for key in file.keys if "lora" not in key and not key.endswith(".dora_scale")]
        if odd:
            return f"`{odd[0]}` does not have `lora` in its name"
    return ""


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
