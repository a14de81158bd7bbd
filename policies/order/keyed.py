"""Orders by a key that a row keeps while it waits: first come, deadline, slack, class with aging."""

from __future__ import annotations

from math import floor, inf
from typing import Any

from policies.order.cost import DeviceCost
from policies.order.lanes import Lane
from policies.order.queue import Rank, WaitingQueue
from policies.preemption import Standing
from policies.rows import Row

__all__ = ["ArrivalQueue", "DeadlineQueue", "PriorityQueue", "SlackQueue"]

_NEVER = 1e12  # seconds: later than any deadline, and small enough to order arrivals behind it


class ArrivalQueue(WaitingQueue):
    """First come, first served (Orca, vLLM). Who comes back from preemption keeps the place of its arrival, and the
    latest arrival gives way first, so the earliest always gets on."""

    def __init__(self, cost: DeviceCost, **options: Any) -> None:
        super().__init__(cost, **options)
        self._lane = Lane()

    def key(self, row: Row) -> float:
        """Lower goes first; ties by the order of coming here. It does not change while the row waits."""
        return row.sequence

    def rank(self, row: Row, now: float) -> Rank:
        return Rank(0, 0, self.key(row))

    def standing(self, row: Row) -> Standing:
        return (0, False, row.sequence)

    def _insert(self, row: Row, now: float) -> None:
        self._lane.put(row, self.key(row))

    def _first(self, now: float) -> Row | None:
        return self._lane.first(now)


class DeadlineQueue(ArrivalQueue):
    """Earliest first-token deadline first (Liu and Layland, 1973), whether it can still be met or not; those without
    one last, by arrival. In overload it serves the most hopeless first: see `shed_hopeless`. A request that was resumed
    elsewhere has had its first token, and its next one is due now: it goes first."""

    def key(self, row: Row) -> float:
        if row.seen:
            return -inf
        return row.deadline if row.deadline < inf else _NEVER + row.sequence


class SlackQueue(DeadlineQueue):
    """Least slack first: deadline less the predicted time of the rest of the prompt (Least Laxity First; MindIE)."""

    def key(self, row: Row) -> float:
        if row.seen or row.deadline == inf:
            return super().key(row)
        return row.deadline - self._cost.alone_s(len(row.tokens) - row.position, row.position)


class PriorityQueue(WaitingQueue):
    """Classes with aging: the key is (class - floor(wait / aging), arrival), the wait counted since arrival.

    So nobody starves: whoever has waited for class · aging goes before all later arrivals of any class. Inside a class
    the first come has waited longest, so that only the heads of the classes are compared. The lowest class gives way
    first, and in it the latest arrival (vLLM's priority policy).
    """

    def __init__(self, cost: DeviceCost, *, aging_s: float, **options: Any) -> None:
        super().__init__(cost, **options)
        self._aging_s = aging_s
        self._classes: dict[int, Lane] = {}

    def rank(self, row: Row, now: float) -> Rank:
        return Rank(row.tier - floor((now - row.queued_at) / self._aging_s), 0, row.sequence)

    def standing(self, row: Row) -> Standing:
        return (row.tier, False, row.sequence)

    def _insert(self, row: Row, now: float) -> None:
        lane = self._classes.get(row.tier)
        if lane is None:
            lane = self._classes[row.tier] = Lane()
        lane.push(row, now)

    def _first(self, now: float) -> Row | None:
        heads = [row for lane in self._classes.values() if (row := lane.first(now)) is not None]
        return min(heads, key=lambda row: self.rank(row, now), default=None)
