"""Weighted fair share between the tenants of a tier that have no deadline: VTC (Sheng et al., OSDI 2024).

Each tenant has a counter of the service it got, over its weight: 1 for a prompt token that was computed for it, 2 for
an output. The waiting tenant with the lowest counter goes next. A tenant that comes back after it had nothing waiting
is lifted to the lowest counter of those that wait: nobody saves up credit by being away. Two tenants that both always
have requests waiting differ by at most 2 · max(cost of a longest prompt, cost of all the outputs that fit the pool).
"""

from __future__ import annotations

from collections import deque
from math import inf

from policies.rows import Row

__all__ = ["OUTPUT_COST", "PROMPT_COST", "FairQueue"]

PROMPT_COST = 1.0
OUTPUT_COST = 2.0
_MOST_IDLE = 4096  # counters kept of tenants that have nothing waiting


class FairQueue:
    """Rows without a deadline, by tenant."""

    __slots__ = ("_counters", "_floor", "_queues", "_waiting")

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._queues: dict[str, deque[tuple[int, Row]]] = {}
        self._waiting: dict[str, int] = {}  # live rows of each tenant
        self._floor = 0.0  # the counter of the last tenant that had something waiting

    @property
    def contended(self) -> bool:
        """Whether more than one tenant waits."""
        return len(self._waiting) > 1

    def push(self, row: Row) -> None:
        """Add a row; its tenant is lifted if it had nothing waiting."""
        tenant = row.request.tenant
        if not self._waiting.get(tenant):
            self._lift(tenant)
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        self._queues.setdefault(tenant, deque()).append((row.ticket, row))

    def restore(self, row: Row) -> None:
        """Put back, first of its tenant, a row that was looked past for a step."""
        self._queues.setdefault(row.request.tenant, deque()).appendleft((row.ticket, row))

    def head(self) -> Row | None:
        """The first row of the tenant with the least service; ties go to the earlier arrival."""
        best: tuple[float, int] = (inf, 0)
        found = None
        for tenant in list(self._queues):
            row = self._first(tenant)
            if row is not None and (key := (self._counters[tenant], row.sequence)) < best:
                best, found = key, row
        return found

    def removed(self, row: Row) -> None:
        """A row that may be here left."""
        if row.preemptions or row.seen or row.deadline != inf:
            return
        tenant = row.request.tenant
        if count := self._waiting.get(tenant):
            if count > 1:
                self._waiting[tenant] = count - 1
            else:
                del self._waiting[tenant]
                self._floor = max(self._floor, self._counters[tenant])

    def started(self, row: Row) -> None:
        """A row got its slot: charge the prompt tokens that are to be computed."""
        if row.deadline == inf and not row.preemptions:
            self._add(row, PROMPT_COST * (len(row.tokens) - row.computed))
            row.charged = row.generated

    def charge(self, row: Row) -> None:
        """Charge the outputs since the last time."""
        if row.deadline == inf and (outputs := row.generated - row.charged) > 0:
            row.charged += outputs
            self._add(row, OUTPUT_COST * outputs)

    def service(self, tenant: str) -> float:
        """Weighted service of a tenant so far."""
        return self._counters.get(tenant, 0.0)

    def _add(self, row: Row, cost: float) -> None:
        tenant, weight = row.request.tenant, row.request.weight
        self._counters[tenant] = self._counters.get(tenant, self._floor) + cost / weight

    def _lift(self, tenant: str) -> None:
        level = min((self._counters[other] for other in self._waiting), default=self._floor)
        self._counters[tenant] = max(self._counters.get(tenant, 0.0), level)
        if len(self._counters) > _MOST_IDLE + len(self._waiting):
            self._counters = {name: self._counters[name] for name in (*self._waiting, tenant)}

    def _first(self, tenant: str) -> Row | None:
        queue = self._queues[tenant]
        while queue:
            ticket, row = queue[0]
            if ticket == row.ticket:
                return row
            queue.popleft()
        del self._queues[tenant]
        return None
