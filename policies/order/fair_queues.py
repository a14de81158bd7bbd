"""Orders that are fair between tenants: VTC, and VTC across tenants with deadlines within."""

from __future__ import annotations

from typing import Any

from policies.order.contract import TieredQueue
from policies.order.cost import DeviceCost
from policies.order.fair import FairShare
from policies.order.lanes import DeadlineLane
from policies.order.queue import Rank, WaitingQueue
from policies.preemption import Standing
from policies.rows import Row

__all__ = ["FairDeadlineQueue", "FairQueue"]


class FairQueue(WaitingQueue):
    """VTC (`policies.order.fair`): the tenant with the least service first, its requests by arrival; no tiers.

    Nobody starves: a waiting tenant's counter stands still while those of the others grow.
    """

    def __init__(self, cost: DeviceCost, **options: Any) -> None:
        super().__init__(cost, **options)
        self.fair = FairShare(cost)
        self._decoding = 1

    def rank(self, row: Row, now: float) -> Rank:
        return Rank(0, 0, self.fair.service(row.request.tenant))

    def standing(self, row: Row) -> Standing:
        return (0, False, row.sequence)

    def started(self, row: Row) -> None:
        super().started(row)
        self.fair.started(row)

    def settle(self, running: list[Row]) -> None:
        self._decoding = max(1, len(running))
        if self.fair.contended:
            for row in running:
                self.fair.charge(row, self._decoding)

    def charge(self, row: Row) -> None:
        self.fair.charge(row, self._decoding)

    def _joined(self, row: Row, now: float) -> None:
        self.fair.joined(row)

    def _insert(self, row: Row, now: float) -> None:
        self.fair.insert(row, now)

    def _first(self, now: float) -> Row | None:
        return self.fair.first(now)

    def _left(self, row: Row) -> None:
        self.fair.left(row)


class FairDeadlineQueue(TieredQueue):
    """Two levels: inside a tier VTC across tenants, and within a tenant `DeadlineLane`, that is EDF.

    A tenant that sends more than its share makes only its own requests late.
    """

    def rank(self, row: Row, now: float) -> Rank:
        return Rank(row.tier, 0, self.service(row.request.tenant, row.tier))

    def _new_tier(self, number: int) -> FairShare:
        return FairShare(self._cost, DeadlineLane)

    def _joined(self, row: Row, now: float) -> None:
        self._tier(row.tier).joined(row)

    def _insert(self, row: Row, now: float) -> None:
        self._tier(row.tier).insert(row, now)

    def _first(self, now: float) -> Row | None:
        for tier in self._order:
            row = self._fair[tier].first(now)
            if row is not None:
                return row
        return None

    def _left(self, row: Row) -> None:
        self._fair[row.tier].left(row)
