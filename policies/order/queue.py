"""What every order of the waiting rows has in common: places, patience, and what the planner and the pressure ask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf, nextafter
from typing import NamedTuple

from policies.order.cost import DeviceCost
from policies.preemption import Standing, standing
from policies.rows import Row

__all__ = ["Entry", "Rank", "WaitingQueue"]


class Rank(NamedTuple):
    """Orders rows: lower goes first. What the parts mean is the order's own matter."""

    tier: int
    group: int
    value: float


class Entry(NamedTuple):
    """A row in a heap, dead once the ticket is not its row's any more. Dead ones are dropped when met."""

    value: float
    ticket: int
    row: Row


def _nothing(row: Row) -> int:
    return 0


_PATIENT = Rank(-(2**31), 0, 0.0)


class WaitingQueue:
    """Rows without a slot, in the order in which they are to start.

    Orders that could starve somebody are given patience: one start in `patience_share` goes to the row that waits
    longest, if it waits for more than `patience_s`. A start never overtakes the head (nothing smaller slips by), so a
    row that has been patient, with m rows that have waited longer, starts at the latest with the
    `patience_share` · (m + 1)-th start from then on. Its prompt then goes on, whatever comes (`in_turn`). With
    `shed_hopeless`, `hopeless` tells who cannot be in time.

    `resident` tells how many tokens of a row's prompt need not be computed, as things are.
    """

    #: Whether the order chooses at every step who of the running rows takes part in it.
    preemptive = False

    def __init__(
        self,
        cost: DeviceCost,
        *,
        resident: Callable[[Row], int] = _nothing,
        patience_s: float = inf,
        patience_share: int = 8,
        shed_hopeless: bool = False,
    ) -> None:
        self._cost = cost
        self._resident = resident
        self._patience_s = patience_s
        self._share = max(1, patience_share)
        self._by_age: deque[Entry] = deque()
        self._aside: list[Row] = []
        self._tickets = 0
        self._since_patient = 0  # starts since the last one that could go to the longest waiting
        self._overtaken = 0  # steps in a row in which others went before the partial prompt that waits longest
        self._size = 0
        self.returning = 0  # of the rows that wait, those that were preempted
        self._latest: list[Entry] | None = [] if shed_hopeless else None  # by the latest start that is of use

    def __len__(self) -> int:
        return self._size

    # What an order decides

    def rank(self, row: Row, now: float) -> Rank:
        """The place of a row in the order, at this moment; of rows that run with a partial prompt too."""
        raise NotImplementedError

    def _insert(self, row: Row, now: float) -> None:
        """Put a row where it belongs; it may have been there before, and be looked past since."""
        raise NotImplementedError

    def _first(self, now: float) -> Row | None:
        """The live row that is first, if there is one."""
        raise NotImplementedError

    def _joined(self, row: Row, now: float) -> None:
        """A row is about to be inserted for the first time since it waits."""

    def _left(self, row: Row) -> None:
        """A row does not wait any more."""

    def standing(self, row: Row) -> Standing:
        """The order in which running rows are protected: the last gives way first."""
        return standing(row)

    # What is asked of it

    def push(self, row: Row, now: float) -> None:
        """Add a row that waits from now on."""
        row.waiting_since = now
        self._tickets += 1
        row.ticket = self._tickets
        self._size += 1
        self.returning += row.preemptions > 0
        self._by_age.append(Entry(now, row.ticket, row))
        if self._latest is not None and row.deadline < inf and row.first_scheduled_at is None:
            heappush(self._latest, Entry(row.deadline - self._cost.alone_s(len(row.tokens), 0), row.ticket, row))
        self._joined(row, now)
        self._insert(row, now)

    def remove(self, row: Row) -> None:
        """Take a row out, wherever it is."""
        if row.ticket:
            row.ticket = 0
            self._size -= 1
            self.returning -= row.preemptions > 0
            self._left(row)

    def head(self, now: float) -> tuple[Row, Rank] | None:
        """The row to start next, with its place in the order; None if nobody waits."""
        if not self._size:
            return None
        if self._since_patient >= self._share - 1:
            oldest = self._oldest()
            if oldest is not None and now - oldest.waiting_since > self._patience_s:
                return oldest, _PATIENT
        row = self._first(now)
        return None if row is None else (row, self.rank(row, now))

    def in_turn(self, partial: list[Row], now: float) -> list[tuple[Rank, Row]]:
        """Running rows with a partial prompt and their places, in the order in which they go on.

        Patience for those who have a slot, so are not in line for one: the prompt that has waited longest for its end,
        if for more than `patience_s`, is first in every `patience_share`-th step.
        """
        ranked = sorted(((self.rank(row, now), row) for row in partial), key=lambda entry: entry[0])
        oldest = min(partial, key=lambda row: row.waiting_since, default=None)
        if oldest is not None and now - oldest.waiting_since > self._patience_s:
            self._overtaken += 1
            if self._overtaken >= self._share:
                self._overtaken = 0
                return [(_PATIENT, oldest), *(entry for entry in ranked if entry[1] is not oldest)]
        return ranked

    def started(self, row: Row) -> None:
        """The head got its slot. Its `computed` says what need not be computed."""
        self._since_patient = 0 if row is self._oldest() else self._since_patient + 1
        self.remove(row)

    def set_aside(self, row: Row) -> None:
        """The head cannot start in this step, for a reason of its own that lets others pass: look behind it."""
        self._aside.append(row)
        row.ticket = -row.ticket  # dead where it is

    def restore(self, now: float) -> None:
        """Put back what was set aside, where it was."""
        for row in self._aside:
            row.ticket = -row.ticket
        for row in reversed(self._aside):
            self._insert(row, now)
        self._aside.clear()

    def settle(self, running: list[Row]) -> None:
        """Charge tenants for the outputs of running rows since the last time. Call it before a choice is made."""

    def charge(self, row: Row) -> None:
        """A row is over: charge its tenant for what was not charged yet."""

    def ahead(self, most: int, now: float) -> list[Row]:
        """Preemptive orders: the first `most` rows that wait."""
        raise NotImplementedError

    def ran(self, rows: list[Row], seconds: float, now: float) -> None:
        """Preemptive orders: these rows are in a step of so many predicted seconds."""
        raise NotImplementedError

    def oldest_since(self) -> float:
        """Since when the row waits that waits longest; inf if nobody waits."""
        oldest = self._oldest()
        return inf if oldest is None else oldest.waiting_since

    def hopeless(self, now: float) -> list[Row]:
        """Rows that never ran and could not be in time any more even if they started alone now. Each is named once, and
        only if `shed_hopeless`."""
        lost: list[Row] = []
        heap = self._latest
        while heap and heap[0].value < now:
            _, ticket, row = heappop(heap)
            if ticket == row.ticket:
                known = self._resident(row)
                latest = row.deadline - self._cost.alone_s(len(row.tokens) - known, known)
                if latest < now:
                    lost.append(row)
                else:
                    heappush(heap, Entry(latest, ticket, row))
        return lost

    def hopeless_at(self) -> float:
        """The instant after which `hopeless` may name somebody; inf: never."""
        return nextafter(self._latest[0].value, inf) if self._latest else inf

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
