"""Which bytes of a range are there already."""

from __future__ import annotations

from bisect import bisect_right


class Coverage:
    """Runs of bytes, few and in order, however many pieces they came in."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> bool:
        """Add one piece; False, and nothing added, where a byte of it was there already."""
        place = bisect_right(self._begins, begin)
        after = self._begins[place] if place < len(self._begins) else end
        before = self._ends[place - 1] if place else begin
        if before > begin or after < end:
            return False
        joins_before, joins_after = bool(place) and before == begin, place < len(self._begins)
        joins_after = joins_after and after == end
        if joins_before and joins_after:
            self._ends[place - 1] = self._ends.pop(place)
            self._begins.pop(place)
        elif joins_before:
            self._ends[place - 1] = end
        elif joins_after:
            self._begins[place] = begin
        else:
            self._begins.insert(place, begin)
            self._ends.insert(place, end)
        return True

    @property
    def reach(self) -> int:
        """The first byte that is not there yet, from 0 on."""
        return self._ends[0] if self._begins and self._begins[0] == 0 else 0
