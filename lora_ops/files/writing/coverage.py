"""Which bytes of a range are there already."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Coverage:
    """Runs of bytes, few and in order, however many pieces they came in."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        """Add one piece; what of it is there already may come again."""
        if begin == end:
            return
        touched = slice(bisect_left(self._ends, begin), bisect_right(self._begins, end))
        self._begins[touched] = [min([begin, *self._begins[touched]])]
        self._ends[touched] = [max([end, *self._ends[touched]])]

    @property
    def reach(self) -> int:
        """The first byte that is not there yet, from 0 on."""
        return self._ends[0] if self._begins and self._begins[0] == 0 else 0
