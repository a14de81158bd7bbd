"""Weighted fair share between tenants: the Virtual Token Counter (VTC, Sheng et al., OSDI 2024), in device-seconds.

Each tenant has a counter of the service it got, over its weight. The waiting tenant with the lowest counter goes next.
A tenant that comes back after it had nothing waiting is lifted to the lowest counter of those that wait: nobody saves
up credit by being away. VTC counts tokens, 1 for a prompt token and 2 for an output; here the unit is the predicted
device-second (`DeviceCost`), and tokens that the prefix cache has cost nothing.

Two tenants that both always have requests waiting differ, in weighted device-seconds, by at most 2 · max(cost of the
costliest prompt, cost of all the outputs of the rows that run at once): VTC's bound, in this unit.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush, heapreplace

from policies.order.cost import DeviceCost
from policies.order.lanes import DeadlineLane, Lane
from policies.rows import Row

__all__ = ["FairShare"]

_MOST_IDLE = 4096  # counters kept of tenants that have nothing waiting


class FairShare:
    """Rows by tenant; inside a tenant, as `lane` orders them. O(log n) each operation, amortised.

    Counters only grow, so a heap over them may lag behind: what is on top is brought up to date before it is believed.
    """

    __slots__ = ("_cost", "_counters", "_floor", "_heap", "_lane", "_lanes", "_stamp", "_stamps", "_waiting")

    def __init__(self, cost: DeviceCost, lane: Callable[[], Lane | DeadlineLane] = Lane) -> None:
        self._cost = cost
        self._lane = lane
        self._counters: dict[str, float] = {}
        self._lanes: dict[str, Lane | DeadlineLane] = {}  # of the tenants in the heap
        self._heap: list[tuple[float, int, str]] = []  # one entry a tenant; ties in the order of the stamps
        self._stamp = 0
        self._stamps: dict[str, int] = {}  # of the tenants that wait, in the order in which they came to
        self._waiting: dict[str, int] = {}  # live rows of each tenant
        self._floor = 0.0  # the counter of the last tenant that had something waiting

    @property
    def contended(self) -> bool:
        """Whether more than one tenant waits."""
        return len(self._waiting) > 1

    def joined(self, row: Row) -> None:
        """A row waits from now on; its tenant is lifted if it had nothing waiting. Insert it next."""
        tenant = row.request.tenant
        if not self._waiting.get(tenant):
            self._lift(tenant)
            self._stamp += 1
            self._stamps[tenant] = self._stamp
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1

    def insert(self, row: Row, now: float) -> None:
        """Put a row in its place."""
        tenant = row.request.tenant
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = self._lane()
            heappush(self._heap, (self._counters[tenant], self._stamps[tenant], tenant))
        lane.push(row, now)

    def first(self, now: float) -> Row | None:
        """The first row of the tenant with the least service."""
        heap = self._heap
        while heap:
            counter, _, tenant = heap[0]
            row = self._lanes[tenant].first(now)
            if row is None:
                heappop(heap)
                del self._lanes[tenant]
            elif counter < self._counters[tenant]:
                heapreplace(heap, (self._counters[tenant], self._stamps[tenant], tenant))
            else:
                return row
        return None

    def left(self, row: Row) -> None:
        """A row that was joined does not wait any more."""
        tenant = row.request.tenant
        count = self._waiting[tenant]
        if count > 1:
            self._waiting[tenant] = count - 1
        else:
            del self._waiting[tenant], self._stamps[tenant]
            self._floor = max(self._floor, self._counters[tenant])

    def started(self, row: Row) -> None:
        """A row got its slot: charge what is to be computed of its prompt. Coming back from preemption is free."""
        if not row.preemptions:
            self._add(row, self._cost.prompt_s(len(row.tokens) - row.computed, row.computed))
            row.charged = row.generated

    def charge(self, row: Row, decoding: int) -> None:
        """Charge the outputs since the last time, produced in steps of about `decoding` rows."""
        before = max(row.charged, row.seen)  # what an earlier attempt gave was charged there
        if (outputs := row.generated - before) > 0:
            row.charged = row.generated
            self._add(row, self._cost.outputs_s(outputs, len(row.tokens), decoding))

    def service(self, tenant: str) -> float:
        """Weighted device-seconds of a tenant so far."""
        return self._counters.get(tenant, 0.0)

    def _add(self, row: Row, seconds: float) -> None:
        tenant, weight = row.request.tenant, row.request.weight
        self._counters[tenant] = self._counters.get(tenant, self._floor) + seconds / weight

    def _lift(self, tenant: str) -> None:
        level = min((self._counters[other] for other in self._waiting), default=self._floor)
        self._counters[tenant] = max(self._counters.get(tenant, 0.0), level)
        if len(self._counters) > _MOST_IDLE + 2 * len(self._waiting):
            keep = {*self._waiting, *self._lanes, tenant}
            self._counters = {name: self._counters[name] for name in keep}
