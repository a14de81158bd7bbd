"""Heaps of waiting rows."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from policies.order.queue import Entry
from policies.rows import Row

__all__ = ["DeadlineLane", "Lane"]


class Lane:
    """Rows by arrival. `first` drops dead entries as it meets them: O(log n) each."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[Entry] = []

    def push(self, row: Row, now: float) -> None:
        """Add a row by its arrival."""
        self.put(row, row.sequence)

    def put(self, row: Row, value: float) -> None:
        """Add a row at a place of its own."""
        heappush(self._heap, Entry(value, row.ticket, row))

    def pop(self) -> None:
        """Drop the first entry."""
        heappop(self._heap)

    def first(self, now: float) -> Row | None:
        """The first live row."""
        heap = self._heap
        while heap:
            entry = heap[0]
            if entry.ticket == entry.row.ticket:
                return entry.row
            heappop(heap)
        return None


class DeadlineLane:
    """Rows that came back from preemption (their clients watch a stream that paused) by arrival, then the earliest
    deadline that can still be met, then those whose deadline is past by arrival, then those without any by arrival.

    EDF alone collapses when it is late: it would serve the most hopeless first, and make the others late in turn.
    """

    __slots__ = ("_back", "_in_time", "_late", "_plain")

    def __init__(self) -> None:
        self._back = Lane()
        self._in_time = Lane()
        self._late = Lane()
        self._plain = Lane()

    def push(self, row: Row, now: float) -> None:
        """Add a row where it belongs."""
        if row.preemptions or row.seen:
            self._back.push(row, now)
        elif row.deadline == inf:
            self._plain.push(row, now)
        elif row.deadline >= now:
            self._in_time.put(row, row.deadline)
        else:
            self._late.push(row, now)

    def first(self, now: float) -> Row | None:
        """The first live row, of those without a deadline too."""
        if (row := self._back.first(now)) is not None:
            return row
        while (row := self._in_time.first(now)) is not None:
            if row.deadline >= now:
                return row
            self._in_time.pop()
            self._late.push(row, now)
        return self._late.first(now) or self._plain.first(now)
