"""Longest prefix match first: cache hits are served while they are resident."""

from __future__ import annotations

from typing import Any

from policies.order.cost import DeviceCost
from policies.order.lanes import Lane
from policies.order.queue import Rank, WaitingQueue
from policies.preemption import Standing
from policies.rows import Row

__all__ = ["PrefixQueue"]

#: With more rows than this, looking at the prefix of each costs more than the order gains (SGLang).
_MOST = 128


class PrefixQueue(WaitingQueue):
    """The waiting row whose prompt has the longest resident prefix first (LPM of SGLang, RadixAttention, 2024).

    Above 128 waiting rows first come, first served, as SGLang does. It could starve prompts that share nothing, so it
    has patience. Matches are looked up once an instant: those that a step itself makes resident count in the next.
    """

    def __init__(self, cost: DeviceCost, **options: Any) -> None:
        super().__init__(cost, **options)
        self._by_arrival = Lane()
        self._rows: dict[Row, None] = {}
        self._matched: dict[Row, int] = {}
        self._at = -1.0

    def rank(self, row: Row, now: float) -> Rank:
        # A partial prompt goes on first: it holds blocks.
        return Rank(0, int(row.slot < 0), row.sequence)

    def standing(self, row: Row) -> Standing:
        return (0, False, row.sequence)

    def _insert(self, row: Row, now: float) -> None:
        self._rows[row] = None
        self._by_arrival.push(row, now)

    def _left(self, row: Row) -> None:
        self._rows.pop(row, None)
        self._matched.pop(row, None)

    def _first(self, now: float) -> Row | None:
        if len(self._rows) > _MOST:
            return self._by_arrival.first(now)
        if now != self._at:
            self._at = now
            self._matched.clear()
        best: tuple[int, int] | None = None
        found = None
        for row in self._rows:
            if row.ticket <= 0:
                continue  # set aside
            match = self._matched.get(row)
            if match is None:
                match = self._matched[row] = self._resident(row)
            if best is None or (-match, row.sequence) < best:
                best, found = (-match, row.sequence), row
        return found
