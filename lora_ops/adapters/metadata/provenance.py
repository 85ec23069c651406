"""What files record of what they were made from, against what is given: verify, bake and unbake.

A record that contradicts what is given is an error, unless other files are allowed; without a
record nothing is compared.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ...errors import FormatError, MismatchError
from ...files import FileSource, false_hash
from ...run.inputs import hashed
from ...source import TensorSource
from . import Input, Source, history

_SIDES = ("base", "tuned")


@contextlib.contextmanager
def originals(
    base: TensorSource, tuned: TensorSource, lora: TensorSource, *, allow_other: bool
) -> Generator[Callable[[], list[str]], None, None]:
    """Give a function that says, once all is read, whether an adapter is of these checkpoints.

    The checkpoints are hashed beside the work, and only where the adapter has a record of them: of
    the extraction that made it, also where it was edited since.

    Args:
        base: The base that is given.
        tuned: The tuned checkpoint that is given.
        lora: The adapter.
        allow_other: What differs becomes a note.

    Raises:
        FormatError: The adapter's data is not what its hash says; a file changed meanwhile.
        MismatchError: By that function: the record has other files, or has the two swapped.
    """
    false = false_hash(lora) if isinstance(lora, FileSource) else None
    if false is not None:
        raise FormatError(
            f"the data is not what `sshs_model_hash` says: {false[0][:12]}…, but it is "
            f"{false[1][:12]}…; the file was damaged, or changed by a program that kept the old "
            "hash: get it again, or convert it, which writes a true one",
            path=lora.name,
        )
    known = _extraction(lora.metadata)
    given = [base, tuned] if known else []
    with hashed(given, (base, tuned, lora)) as inputs:

        def notes() -> list[str]:
            found = inputs()
            differ = _differences(known, found)
            if differ and not allow_other:
                raise MismatchError(
                    f"{lora.name} was made from other files: {'; '.join(differ)}; give those it "
                    "was made from, or go on with `allow_other=True`"
                )
            return [*differ, *(one.note for one in found if one.note)]

        yield notes


def _extraction(metadata: Mapping[str, str]) -> dict[str, str]:
    """Name and hash of base and tuned by their keys, of the last extraction in a record."""
    for step in reversed(history(metadata)):
        entries = cast("dict[str, object]", step) if isinstance(step, dict) else {}
        if any(entries.get(f"{side}_sha256") for side in _SIDES):
            return {key: value for key, value in entries.items() if isinstance(value, str)}
    return {}


def _differences(known: Mapping[str, str], found: Sequence[Input]) -> list[str]:
    """Which of base and tuned are other files than those of the record."""
    given = dict(zip(_SIDES, found, strict=True)) if found else {}
    wanted = {side: known.get(f"{side}_sha256", "") for side in _SIDES}
    differ: list[str] = []
    for side, file in given.items():
        other = _SIDES[side == "base"]
        if not file.sha256 or not wanted[side] or file.sha256 == wanted[side]:
            continue
        what = (
            f"its {other} checkpoint, base and tuned are swapped"
            if file.sha256 == wanted[other]
            else f"sha256 {file.sha256[:12]}…"
        )
        differ.append(
            f"{side} was `{known.get(side, '?')}`, sha256 {wanted[side][:12]}…, and `{file.name}` "
            f"is {what}"
        )
    return differ


@dataclass(slots=True)
class _Baked:
    """One adapter that is in a checkpoint, by the record.

    Attributes:
        name: Name of its file.
        sha256: Hash of its file; empty where it was in memory.
        blocks: Strengths by block and pattern, as text.
        strengths: The strength of each time that it was baked in.
    """

    name: str
    sha256: str
    blocks: str
    strengths: list[float] = field(default_factory=list[float])

    def add(self, strength: float) -> None:
        """Record that it was baked in once more, or taken out at a strength at which it was in."""
        for known in self.strengths:
            if math.isclose(known, -strength):
                self.strengths.remove(known)
                return
        self.strengths.append(strength)
        if math.isclose(math.fsum(self.strengths), 0, abs_tol=1e-9):
            self.strengths.clear()

    def is_of(self, file: Input) -> bool:
        """Whether it is that file; by name, where nothing better is known of either."""
        if self.sha256 or file.sha256:
            return self.sha256 == file.sha256
        return self.name == file.name

    def __str__(self) -> str:
        times = " and ".join(f"{one:g}" for one in self.strengths) or "nothing"
        return f"`{self.name}` at {times}{f' ({self.blocks})' if self.blocks else ''}"


def check_bakes(
    metadata: Mapping[str, str], adapters: Sequence[Source], sign: int, *, allow_other: bool = False
) -> list[str]:
    """Return what the record of a checkpoint says of adapters that are to be baked in, or taken out.

    Args:
        metadata: Of the checkpoint.
        adapters: With their hashes and strengths.
        sign: 1 to bake, -1 to unbake.
        allow_other: What differs becomes a note.

    Raises:
        MismatchError: What is to be taken out is not in it, or not at that strength.
    """
    record = _record(metadata)
    if sign < 0 and not record:
        return ["the checkpoint has no record of what was baked into it: nothing was compared"]
    notes: list[str] = []
    for adapter in adapters:
        same = [one for one in record if one.is_of(adapter.file)]
        held = [one for one in same if one.strengths]
        if sign > 0:
            notes += [f"{one} is in the checkpoint already" for one in held]
            _enter(record, adapter.file, adapter.blocks, adapter.strength)
            continue
        fault = _fault(adapter, held, record)
        if fault and not allow_other:
            raise MismatchError(
                f"{fault}; give what was baked in, or go on with `allow_other=True`"
            )
        notes += [fault] if fault else []
        _enter(record, adapter.file, adapter.blocks, -adapter.strength)
        if not fault:
            notes += [f"{one} stays in the checkpoint" for one in same if one.strengths]
    return notes


def _fault(adapter: Source, held: Sequence[_Baked], record: Sequence[_Baked]) -> str:
    """Why an adapter cannot be taken out of a checkpoint with this record; empty if it can."""
    given = str(_Baked(adapter.file.name, "", adapter.blocks, [adapter.strength]))
    if not held:
        there = ", ".join(str(one) for one in record if one.strengths) or "none any more"
        named = any(one.name == adapter.file.name and one.strengths for one in record)
        other = "; that is another file of the same name" if named else ""
        return f"{given} is not among the adapters that are in the checkpoint: {there}{other}"
    for one in held:
        values = [*one.strengths, math.fsum(one.strengths)]
        if one.blocks == adapter.blocks and any(math.isclose(x, adapter.strength) for x in values):
            return ""
    return f"{given} is to be taken out, but in the checkpoint is {', '.join(map(str, held))}"


def _record(metadata: Mapping[str, str]) -> list[_Baked]:
    """What was baked into a checkpoint and not taken out again."""
    found: list[_Baked] = []
    for step in history(metadata):
        entries = cast("dict[str, Any]", step) if isinstance(step, dict) else {}
        sign = {"bake": 1, "unbake": -1}.get(str(entries.get("operation")), 0)
        rows: object = entries.get("sources")
        for row in cast("list[object]", rows) if sign and isinstance(rows, list) else []:
            source = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
            strength = source.get("strength")
            if isinstance(strength, int | float):
                file = Input(str(source.get("name", "?")), str(source.get("sha256", "")))
                _enter(found, file, str(source.get("blocks", "")), sign * float(strength))
    return found


def _enter(record: list[_Baked], file: Input, blocks: str, strength: float) -> None:
    for one in record:
        if one.is_of(file) and one.blocks == blocks:
            one.add(strength)
            return
    record.append(_Baked(Path(file.name).name, file.sha256, blocks, [strength]))
