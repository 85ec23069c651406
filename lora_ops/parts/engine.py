"""An engine: who makes the parts that are missing. The plain one is this process, one after another.

Others are in files of their own: `processes.py`, a process for each of several devices of this machine, and
`ray_engine.py`, the tasks of a cluster. To an engine a part is a cost and a call that makes it; what counts
as made is what lies in the folder of the parts with its manifest, whoever put it there.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ..errors import ArgumentError, MissingPartsError
from ..run.devices import Placement
from ..run.workers import Progress

#: How often a part is begun before it is given up.
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Share:
    """A part that is to be made.

    Attributes:
        number: Which, from 1.
        count: Of how many.
        names: Of its jobs, in the order of the work.
        cost: Of them together.
    """

    number: int
    count: int
    names: tuple[str, ...]
    cost: int

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"part {self.number} of {self.count}"

    def given_up(self, why: str) -> MissingPartsError:
        """Return the error of a part whose makers all ended before it was made.

        Args:
            why: How the last of them ended.
        """
        return MissingPartsError(
            f"{self.title} failed {ATTEMPTS} times: {why}; the parts that are there stay, and the same "
            "run goes on from them; this one holds",
            self.names,
        )


class Make(Protocol):
    """Makes a part, in any process that sees the same files under the same names. It can be pickled."""

    def __call__(
        self, share: Share, placement: Placement, progress: Progress | None = None
    ) -> object:
        """Make a part, file and manifest.

        Args:
            share: The part.
            placement: Where to compute.
            progress: Called after each job.

        Raises:
            LoraOpsError: See `make_part`; there is no such part then.
        """
        ...


class Tell(Protocol):
    """Is told how far a part is."""

    def __call__(self, share: Share, done: int, name: str) -> None:
        """Take note.

        Args:
            share: The part.
            done: Cost of what is done of it.
            name: What was finished.
        """
        ...


class Engine(Protocol):
    """Has parts made, in any order."""

    def __call__(self, shares: Sequence[Share], make: Make, tell: Tell) -> None:
        """Return when all of them are made; nobody works on one any more, however it ends.

        Args:
            shares: The parts.
            make: Makes one.
            tell: Called as they come on, from this thread.

        Raises:
            MissingPartsError: Those who made a part ended before it was made, three times.
            LoraOpsError: See `Make`.
        """
        ...


@dataclass(frozen=True, slots=True)
class InTurn:
    """The plain engine: one part after another, here.

    Attributes:
        placement: Where to compute.
    """

    placement: Placement

    def __call__(self, shares: Sequence[Share], make: Make, tell: Tell) -> None:
        """Make all of them; see `Engine`."""
        for share in shares:
            make(share, self.placement, progress_of(share, tell))


def pickled(make: Make) -> bytes:
    """Return what makes parts, to be sent to another process.

    Raises:
        ArgumentError: It cannot be.
    """
    try:
        return pickle.dumps(make)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ArgumentError(f"this work cannot go to another process: {error}") from error


def progress_of(share: Share, tell: Tell) -> Progress:
    """Return what tells the progress of a part.

    Args:
        share: The part.
        tell: Is told.
    """
    return partial(_told, share, tell)


def _told(share: Share, tell: Tell, done: int, _: int, name: str) -> None:
    tell(share, done, name)
