"""What each program reads: one table a file."""

from __future__ import annotations

from .comfy import COMFY
from .diffusers import DIFFUSERS
from .forge import FORGE
from .kohya import KOHYA
from .program import PAIRS, Blocks, Program, Route, Scheme

#: By name, in the order in which they are reported.
PROGRAMS: dict[str, Program] = {one.name: one for one in (COMFY, FORGE, DIFFUSERS, KOHYA)}

__all__ = ["PAIRS", "PROGRAMS", "Blocks", "Program", "Route", "Scheme"]
