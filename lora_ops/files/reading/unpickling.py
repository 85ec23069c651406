"""The opcodes of a pickled checkpoint, carried out with descriptions in place of objects.

Nothing that a pickle names is imported or called: storages and torch's functions that rebuild a
tensor give a description, harmless values that are no tensors give None, any other call is
refused. So no pickle can run code, or hold what is not in the file. Sources: the documentation of
Python's `pickletools`; what `torch.save` writes.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import BinaryIO, ClassVar, cast

from ...errors import FormatError, UnsafePickleError
from ..base import quote
from .stored import HARMLESS, REBUILD, Name, Storage, Stored, Strange, call, storage_of

#: The longest pickle, in bytes: 300,000 tensors with all that belongs to them.
MAX_PICKLE = 1 << 26
# What costs more memory than the bytes that ask for it: containers, tensors, places in the memo.
_MOST_OBJECTS = 6_000_000
# Of anything: a number is made of three bytes and takes 44.
_MOST_STEPS = 16_000_000
_MOST_DIGITS = 64  # bytes of one integer; the magic number of old files has 10
_LONGEST_NAME = 1000

_WAY_OUT = "if you trust the file, convert it to safetensors with the program that made it"


class _Mark:
    """Where a group of values begins on the stack."""


_MARK = _Mark()


class Unpickler:
    """Reads pickles from a stream, one after another.

    Args:
        stream: Seekable only as far as it has been read; `tell` is the caller's.
        size: How many bytes may be read from it.

    Attributes:
        storages: Those that were named, by their key; where a key has several, the one that ends last.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = min(size, MAX_PICKLE)
        self._objects = self._steps = 0
        self.storages: dict[str, Storage] = {}

    def load(self) -> object:
        """Read one pickle up to its end.

        Returns:
            Python's own numbers, strings, lists, tuples and dicts (with keys that are strings or
            integers; what has others is left out), `Stored`, `Strange`, `Storage`, `Name`, or None.

        Raises:
            UnsafePickleError: it calls what has nothing to do with tensors.
            FormatError: it is damaged, or asks for more memory than its content is worth.
        """
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}
        try:
            while (code := self._take(1)) != pickle.STOP:
                self._steps += 1
                step = self._STEPS.get(code)
                if self._steps > _MOST_STEPS:
                    raise damaged(f"its pickle holds more than {_MOST_STEPS} values")
                if step is None:
                    raise UnsafePickleError(_refusal("do more than name tensors"))
                step(self)
            return self._pop()
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            # What Python says of values that are not where and what they should be.
            raise damaged(f"its pickle is damaged: {error}") from error

    def _take(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise damaged("its pickle is longer than the file, or than any of a checkpoint")
        self._left -= size
        text = self._stream.read(size)
        if len(text) != size:
            raise damaged("it is truncated within its pickle")
        return text

    def _number(self, layout: str) -> int:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        line = self._stream.readline(min(_LONGEST_NAME, self._left))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            raise damaged("a name in its pickle has no end")
        return line[:-1].decode("utf-8")

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        value = self._stack.pop()
        if value is _MARK:
            raise damaged("its pickle has a group without a value")
        return value

    def _group(self) -> list[object]:
        """What was pushed since the last mark."""
        items: list[object] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def _count(self, objects: int) -> None:
        self._objects += objects
        if self._objects > _MOST_OBJECTS:
            raise damaged(f"its pickle holds more than {_MOST_OBJECTS} objects")

    def _made(self, value: object) -> None:
        self._count(1)
        self._stack.append(value)

    # Values.

    def _integer(self, size: int) -> None:
        if size > _MOST_DIGITS:
            raise damaged(f"a number of {size} bytes in its pickle is no size")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _text(self, size: int) -> None:
        # Python writes half a surrogate pair so; as a name it is refused later.
        self._push(self._take(size).decode("utf-8", "surrogatepass"))

    def _bytes(self, size: int) -> None:
        self._take(size)
        self._push(None)

    def _tuple(self, size: int) -> None:
        self._made(tuple(self._pop() for _ in range(size))[::-1])

    # The memo.

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]
        self._count(1)

    # Filling containers. What is none of ours (a set, a counter) is None, and takes in nothing.

    def _append(self, items: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            cast("list[object]", target).extend(items)
        elif target is not None:
            raise UnsafePickleError(_refusal("fill what is no list"))

    def _set(self, items: list[object]) -> None:
        target = self._stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            _fill(cast("dict[object, object]", target), pairs)
        elif target is not None:
            raise UnsafePickleError(_refusal("fill what is no dict"))

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _ignore_items(self) -> None:
        self._group()
        if self._stack[-1] is not None:
            raise UnsafePickleError(_refusal("fill what is no set"))

    # Names and calls.

    def _global(self) -> None:
        module = self._line()
        self._push(Name(f"{module}.{self._line()}"))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise damaged("a name in its pickle is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise damaged("a name in its pickle has no end")
        self._push(Name(f"{module}.{name}"))

    def _call(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name):
            raise UnsafePickleError(_refusal("call what has no name"))
        if not isinstance(arguments, tuple):
            raise damaged("a call in its pickle has no arguments")
        given = cast("tuple[object, ...]", arguments)
        if function.text in HARMLESS:
            self._made(None)
        elif function.text == "collections.OrderedDict":
            pairs = cast("list[tuple[object, object]]", given[0] if given else [])
            self._count(len(pairs))
            self._made(_fill({}, pairs))
        elif function.text in REBUILD:
            self._made(call(REBUILD[function.text], given))
        else:
            raise UnsafePickleError(_refusal(f"run {quote(function.text)}"))

    def _call_with_keywords(self) -> None:
        self._pop()
        self._call()

    def _build(self) -> None:
        """Attributes of an object: none of them belongs to a tensor's numbers."""
        self._pop()
        target = self._stack[-1]
        if isinstance(target, Stored | Strange | Storage | Name):
            raise UnsafePickleError(_refusal("change a tensor after it is made"))

    def _persistent(self) -> None:
        identity = self._pop()
        storage = storage_of(identity)
        if isinstance(storage, Storage):
            known = self.storages.get(storage.root, storage)
            if storage.begin + storage.size >= known.begin + known.size:
                self.storages[storage.root] = storage
        self._made(storage)

    #: What each opcode does; the end of a pickle is not among them.
    _STEPS: ClassVar[dict[bytes, Callable[[Unpickler], object]]] = {
        pickle.NONE: lambda r: r._push(None),
        pickle.NEWTRUE: lambda r: r._push(True),
        pickle.NEWFALSE: lambda r: r._push(False),
        pickle.MARK: lambda r: r._push(_MARK),
        pickle.EMPTY_TUPLE: lambda r: r._push(()),
        pickle.EMPTY_LIST: lambda r: r._made([]),
        pickle.EMPTY_DICT: lambda r: r._made({}),
        pickle.EMPTY_SET: lambda r: r._push(None),
        pickle.PROTO: lambda r: r._take(1),
        pickle.FRAME: lambda r: r._take(8),
        pickle.BININT: lambda r: r._push(r._number("<i")),
        pickle.BININT1: lambda r: r._push(r._number("<B")),
        pickle.BININT2: lambda r: r._push(r._number("<H")),
        pickle.BINFLOAT: lambda r: r._push(r._number(">d")),
        pickle.LONG1: lambda r: r._integer(r._number("<B")),
        pickle.LONG4: lambda r: r._integer(r._number("<I")),
        pickle.BINUNICODE: lambda r: r._text(r._number("<I")),
        pickle.SHORT_BINUNICODE: lambda r: r._text(r._number("<B")),
        pickle.BINUNICODE8: lambda r: r._text(r._number("<Q")),
        pickle.BINSTRING: lambda r: r._text(r._number("<I")),
        pickle.SHORT_BINSTRING: lambda r: r._text(r._number("<B")),
        pickle.BINBYTES: lambda r: r._bytes(r._number("<I")),
        pickle.SHORT_BINBYTES: lambda r: r._bytes(r._number("<B")),
        pickle.BINBYTES8: lambda r: r._bytes(r._number("<Q")),
        pickle.BYTEARRAY8: lambda r: r._bytes(r._number("<Q")),
        pickle.TUPLE: lambda r: r._made(tuple(r._group())),
        pickle.TUPLE1: lambda r: r._tuple(1),
        pickle.TUPLE2: lambda r: r._tuple(2),
        pickle.TUPLE3: lambda r: r._tuple(3),
        pickle.FROZENSET: lambda r: (r._group(), r._push(None)),
        pickle.BINGET: lambda r: r._push(r._memo[r._number("<B")]),
        pickle.LONG_BINGET: lambda r: r._push(r._memo[r._number("<I")]),
        pickle.BINPUT: lambda r: r._put(r._number("<B")),
        pickle.LONG_BINPUT: lambda r: r._put(r._number("<I")),
        pickle.MEMOIZE: lambda r: r._put(len(r._memo)),
        pickle.APPEND: lambda r: r._append([r._pop()]),
        pickle.APPENDS: lambda r: r._append(r._group()),
        pickle.SETITEM: _set_one,
        pickle.SETITEMS: lambda r: r._set(r._group()),
        pickle.ADDITEMS: _ignore_items,
        pickle.GLOBAL: _global,
        pickle.STACK_GLOBAL: _stack_global,
        pickle.REDUCE: _call,
        pickle.NEWOBJ: _call,
        pickle.NEWOBJ_EX: _call_with_keywords,
        pickle.BUILD: _build,
        pickle.BINPERSID: _persistent,
    }


def damaged(why: str) -> FormatError:
    """The error for a file that does not hold what it should."""
    line = (why.splitlines() or [""])[0][:200]
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return FormatError(f"not a readable PyTorch file ({printable}); download or copy it again")


def _refusal(wants: str) -> str:
    return f"its pickle wants to {wants}, which was not done; {_WAY_OUT}"


def _fill(target: dict[object, object], pairs: list[tuple[object, object]]) -> dict[object, object]:
    """Set items; other keys are nobody's names, and hashing a deep tuple would crash Python."""
    for key, value in pairs:
        # Larger integers could be chosen to have one hash.
        if type(key) is str or (type(key) is int and abs(key) < 1 << 60):
            target[key] = value
    return target
