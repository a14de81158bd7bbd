"""Requests that wait at admission for their earliest feasible start. Bounded, and fair between tenants.

A flood of one tenant must not take every place: a tenant holds at most a share of the queue, and when the queue is full
the one furthest above its fair line gives way first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Generic, NamedTuple, TypeVar

import msgspec

__all__ = ["Deferred", "DeferredQueue", "Due"]

T = TypeVar("T")


class Deferred(msgspec.Struct, Generic[T], frozen=True):
    """A waiting request. `deadline_s` is the latest start that is still of use; `until_s` the earliest feasible one."""

    id: str
    tenant: str
    tier: int
    deadline_s: float
    until_s: float
    what: T


class Due(NamedTuple, Generic[T]):
    """`expired` left the queue: their deadline passed. `order` is in the queue still: examine again in this order."""

    expired: list[Deferred[T]]
    order: list[Deferred[T]]


class DeferredQueue(Generic[T]):
    """At most `size` requests, ordered by tier, then deadline, then arrival; a tenant at most `share` of them.

    `add` is O(size) worst case, `remove` O(log size), `expired` O(log size) each, `order` O(its length).
    """

    def __init__(self, size: int = 256, *, share: float = 0.5) -> None:
        if size < 1 or not 0 < share <= 1:
            raise ValueError(f"deferred queue of size {size}, share {share}: size must be >= 1 and share in (0, 1]")
        self._size = size
        self._cap = ceil(size * share)
        self._keys: dict[str, tuple[int, float, int]] = {}
        self._entries: dict[str, Deferred[T]] = {}
        self._order: list[tuple[int, float, int, str]] = []
        self._deadlines: list[tuple[float, str]] = []  # a heap; what is not in the queue any more is skipped
        self._held: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._entries

    def held(self, tenant: str) -> int:
        """Places that `tenant` has."""
        return self._held[tenant]

    def add(self, entry: Deferred[T]) -> Deferred[T] | None:
        """Let `entry` in. Returns the one that has no place for it (queue_full), which may be `entry` itself.

        An id that is in the queue already is replaced, and keeps its place among equals.
        """
        if entry.id in self._entries:
            count = self._keys[entry.id][2]
            self.remove(entry.id)
            self._put(entry, count)
            return None
        if self._held[entry.tenant] >= self._cap:
            worst = self._worst(entry.tenant)
            if (worst.tier, worst.deadline_s) <= (entry.tier, entry.deadline_s):
                return entry
            return self._replace(worst, entry)
        if len(self._entries) < self._size:
            self._put(entry)
            return None
        victim = self._victim(entry)
        return entry if victim is None else self._replace(victim, entry)

    def remove(self, request_id: str) -> Deferred[T] | None:
        """Take a request out: it was admitted, or its client left. None if it is not there."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return None
        key = (*self._keys.pop(request_id), request_id)
        del self._order[bisect_left(self._order, key)]
        self._held[entry.tenant] -= 1
        if not self._held[entry.tenant]:
            del self._held[entry.tenant]
        return entry

    def due(self, now: float) -> Due[T]:
        """Drop what expired, and tell the order in which to examine the rest."""
        return Due(self.expired(now), self.order())

    def expired(self, now: float) -> list[Deferred[T]]:
        """Drop those whose deadline has passed. O(log size) each."""
        out = []
        while self._deadlines and self._deadlines[0][0] < now:
            deadline, request_id = heappop(self._deadlines)
            entry = self._entries.get(request_id)
            if entry is not None and entry.deadline_s == deadline:
                out.append(entry)
                self.remove(request_id)
        return out

    def order(self, most: int | None = None) -> list[Deferred[T]]:
        """In the order in which to examine them, the first `most`."""
        return [self._entries[key[3]] for key in self._order[:most]]

    def expires_at(self) -> float:
        """The next instant after which something expires; inf when empty."""
        while self._deadlines:
            deadline, request_id = self._deadlines[0]
            entry = self._entries.get(request_id)
            if entry is not None and entry.deadline_s == deadline:
                return deadline
            heappop(self._deadlines)
        return inf

    def wake_at(self) -> float:
        """The next instant at which something starts or expires by itself; inf when empty."""
        return min((min(entry.deadline_s, entry.until_s) for entry in self._entries.values()), default=inf)

    def _put(self, entry: Deferred[T], count: int | None = None) -> None:
        if count is None:
            self._count += 1
            count = self._count
        self._entries[entry.id] = entry
        self._keys[entry.id] = (entry.tier, entry.deadline_s, count)
        insort(self._order, (entry.tier, entry.deadline_s, count, entry.id))
        heappush(self._deadlines, (entry.deadline_s, entry.id))
        if len(self._deadlines) > 4 * self._size + 64:
            self._deadlines = [(e.deadline_s, e.id) for e in self._entries.values()]
            heapify(self._deadlines)
        self._held[entry.tenant] += 1

    def _replace(self, victim: Deferred[T], entry: Deferred[T]) -> Deferred[T]:
        self.remove(victim.id)
        self._put(entry)
        return victim

    def _worst(self, tenant: str) -> Deferred[T]:
        return next(e for key in reversed(self._order) if (e := self._entries[key[3]]).tenant == tenant)

    def _victim(self, entry: Deferred[T]) -> Deferred[T] | None:
        """Who gives way: the lowest tier, if below the newcomer's; in its own, a tenant with more places than its."""
        tier = self._order[-1][0]
        if tier < entry.tier:
            return None
        inside = [e for key in self._order if (e := self._entries[key[3]]).tier == tier]
        places = Counter(e.tenant for e in inside)
        tenant, most = max(places.items(), key=lambda item: item[1])
        if tier == entry.tier and most <= places[entry.tenant] + 1:
            return None
        return next(e for e in reversed(inside) if e.tenant == tenant)
