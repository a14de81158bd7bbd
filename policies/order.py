"""Who is served next: tier, then deadline, then fair share, and nobody forever last.

Inside a tier, in this order:

1. rows that come back from preemption (their clients watch a stream that paused), by arrival;
2. earliest first-token deadline first, as long as it can still be met;
3. those whose deadline is past, by arrival. EDF alone collapses when it is late: it would serve the most hopeless first
   and make each of the others late in turn;
4. those without a deadline, by weighted fair share of their tenants, each tenant's own by arrival.

That order alone could starve: so one start in `patience_share` goes to the row that waits longest, if it waits for more
than `patience_s`. A start never overtakes the head (nothing smaller slips by), so a row that has been patient, with m
rows that have waited longer, starts at the latest with the `patience_share` · (m + 1)-th start from then on.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import NamedTuple

from policies.fair import FairQueue
from policies.rows import Row

__all__ = ["Rank", "WaitingQueue", "rank"]


class Rank(NamedTuple):
    """Orders rows: lower goes first."""

    tier: int
    group: int
    value: float


_BACK, _IN_TIME, _LATE, _PLAIN = range(4)
_FOREVER = float("inf")
_PATIENT = Rank(-1, 0, 0.0)


def rank(row: Row, now: float) -> Rank:
    """The place of a row in the order, at this moment."""
    if row.preemptions or row.seen:
        return Rank(row.tier, _BACK, row.sequence)
    if row.deadline == _FOREVER:
        return Rank(row.tier, _PLAIN, row.sequence)
    if row.deadline >= now:
        return Rank(row.tier, _IN_TIME, row.deadline)
    return Rank(row.tier, _LATE, row.sequence)


class _Entry(NamedTuple):
    value: float
    ticket: int
    row: Row


class _Tier:
    """The waiting rows of one tier. Entries whose ticket is not their row's any more are dead, and dropped when met."""

    __slots__ = ("back", "in_time", "late", "plain")

    def __init__(self) -> None:
        self.back: list[_Entry] = []
        self.in_time: list[_Entry] = []
        self.late: list[_Entry] = []
        self.plain = FairQueue()

    def push(self, row: Row, now: float, *, again: bool = False) -> None:
        place = rank(row, now)
        if place.group == _PLAIN:
            (self.plain.restore if again else self.plain.push)(row)
        else:
            heap = (self.back, self.in_time, self.late)[place.group]
            heappush(heap, _Entry(place.value, row.ticket, row))

    def head(self, now: float) -> Row | None:
        if (row := _top(self.back)) is not None:
            return row
        while (row := _top(self.in_time)) is not None:
            if row.deadline >= now:
                return row
            entry = heappop(self.in_time)
            heappush(self.late, _Entry(row.sequence, entry.ticket, row))
        if (row := _top(self.late)) is not None:
            return row
        return self.plain.head()


def _top(heap: list[_Entry]) -> Row | None:
    while heap:
        entry = heap[0]
        if entry.ticket == entry.row.ticket:
            return entry.row
        heappop(heap)
    return None


class WaitingQueue:
    """Rows without a slot. Every operation is O(log n), but for the choice between tenants, O(tenants that wait)."""

    def __init__(self, *, patience_s: float, patience_share: int) -> None:
        self._patience_s = patience_s
        self._share = max(1, patience_share)
        self._tiers: dict[int, _Tier] = {}
        self._order: list[int] = []  # tiers, best first
        self._by_age: deque[_Entry] = deque()
        self._aside: list[Row] = []
        self._tickets = 0
        self._since_patient = 0  # starts since the last one that could go to the longest waiting
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, row: Row, now: float) -> None:
        """Add a row that waits from now on."""
        row.waiting_since = now
        self._tickets += 1
        row.ticket = self._tickets
        self._size += 1
        self._by_age.append(_Entry(now, row.ticket, row))
        self._tier(row.tier).push(row, now)

    def remove(self, row: Row) -> None:
        """Take a row out, wherever it is."""
        if row.ticket:
            row.ticket = 0
            self._size -= 1
            self._tier(row.tier).plain.removed(row)

    def head(self, now: float) -> tuple[Row, Rank] | None:
        """The row to start next, with its place in the order; None if nobody waits."""
        if not self._size:
            return None
        if self._since_patient >= self._share - 1:
            oldest = self._oldest()
            if oldest is not None and now - oldest.waiting_since > self._patience_s:
                return oldest, _PATIENT
        for number in self._order:
            row = self._tiers[number].head(now)
            if row is not None:
                return row, rank(row, now)
        return None

    def started(self, row: Row) -> None:
        """The head got its slot."""
        self._since_patient = 0 if row is self._oldest() else self._since_patient + 1
        self.remove(row)
        self._tiers[row.tier].plain.started(row)

    def set_aside(self, row: Row) -> None:
        """The head cannot start in this step, for a reason of its own that lets others pass: look behind it."""
        self._aside.append(row)
        row.ticket = -row.ticket  # dead where it is

    def restore(self, now: float) -> None:
        """Put back what was set aside, where it was."""
        for row in self._aside:
            row.ticket = -row.ticket
        for row in reversed(self._aside):
            self._tiers[row.tier].push(row, now, again=True)
        self._aside.clear()

    def settle(self, running: list[Row]) -> None:
        """Charge tenants for the outputs of running rows since the last time. Call it before a choice is made.

        Does nothing while no tier has tenants to choose between: what is not charged now is charged then.
        """
        if any(tier.plain.contended for tier in self._tiers.values()):
            for row in running:
                self.charge(row)

    def charge(self, row: Row) -> None:
        """Charge the tenant of a row for its outputs since the last time."""
        if (tier := self._tiers.get(row.tier)) is not None:
            tier.plain.charge(row)

    def _oldest(self) -> Row | None:
        by_age = self._by_age
        while by_age:
            entry = by_age[0]
            if entry.ticket == entry.row.ticket:
                return entry.row
            if entry.ticket == -entry.row.ticket:
                return None  # set aside for this step
            by_age.popleft()
        return None

    def _tier(self, number: int) -> _Tier:
        tier = self._tiers.get(number)
        if tier is None:
            tier = self._tiers[number] = _Tier()
            self._order = sorted(self._tiers)
        return tier
