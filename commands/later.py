"""torch, imported when something of it is first used: headers are read without it.

It takes a second to import, and neither what looks at headers alone nor a refusal needs it. Until then a module
stands in its place and imports it when anything of it is asked for. `import torch` is not asking, nor is
`from torch import Tensor`, which modules do for their annotations. Python 3.15 has `lazy import` for this.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any, NoReturn

_NAME = "torch"
# Classes that modules import for annotations.
_ANNOTATE = ("Tensor",)
_lock = threading.RLock()


class _Later(ModuleType):
    """The module while it is not there yet."""

    comes = False

    def __getattr__(self, name: str) -> Any:
        """Bring the module for what it has not got so far, which is everything."""
        if name in _ANNOTATE and not self.comes:
            return _Unmade(name, (), {})
        with _lock:  # for another thread may be bringing it
            spec = self.__spec__ if type(self) is _Later and not self.comes else None
            if spec is not None and spec.loader is not None:
                self.comes, self.__path__ = True, spec.submodule_search_locations or []
                spec.loader.exec_module(self)
                del self.comes
                self.__class__ = ModuleType  # pyright: ignore[reportAttributeAccessIssue]
        return ModuleType.__getattribute__(self, name)


class _NoPath(list[str]):
    """Where modules within it are, which none may ask before it is there: they would be imported twice."""

    def __iter__(self) -> NoReturn:
        """Refuse to tell."""
        raise ImportError(f"`import {_NAME}`, and use it, before what is within it")


class _Unmade(type):
    """A class of a module that is not there yet: good for annotations, and nothing is one of it so far."""

    def __instancecheck__(cls, instance: object) -> bool:
        """Ask the class itself, if it is there."""
        module = sys.modules[_NAME]
        return not isinstance(module, _Later) and isinstance(
            instance, getattr(module, cls.__name__)
        )


def import_torch_later() -> None:
    """Let torch be imported when something of it is first used, in all of this process."""
    spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
    if spec is not None:
        module = importlib.util.module_from_spec(spec)
        module.__class__ = _Later
        module.__path__ = _NoPath()
        sys.modules[_NAME] = module
