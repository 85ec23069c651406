"""What each program reads: one table a file."""

from __future__ import annotations

from .comfy import COMFY
from .diffusers import DIFFUSERS
from .forge import FORGE
from .kohya import KOHYA
from .program import CONTROL_PAIRS, PAIRS, Blocks, Program, Route, Scheme

#: By name, in the order in which they are reported.
PROGRAMS: dict[str, Program] = {one.name: one for one in (COMFY, FORGE, DIFFUSERS, KOHYA)}

__all__ = ["CONTROL_PAIRS", "PAIRS", "PROGRAMS", "Blocks", "Program", "Route", "Scheme"]
