"""The order that keeps contracts: tier, then deadline, then fair share, and nobody forever last.

First of all, prompts under a contract that have begun and are late: they hold a slot and blocks, and would starve
behind those that can still be in time. Then, inside a tier:

1. rows that come back from preemption (their clients watch a stream that paused), by arrival;
2. earliest first-token deadline first, as long as it can still be met;
3. those whose deadline passed before they began, by arrival: they make nobody else late;
4. those without a deadline, by weighted fair share of their tenants, each tenant's own by arrival.
"""

from __future__ import annotations

from math import inf
from typing import Any

from policies.order.cost import DeviceCost
from policies.order.fair import FairShare
from policies.order.lanes import DeadlineLane
from policies.order.queue import Rank, WaitingQueue
from policies.rows import Row
from policies.vocabulary import Tier

__all__ = ["ContractQueue", "TieredQueue", "rank"]

_BACK, _IN_TIME, _LATE, _PLAIN = range(4)


def rank(row: Row, now: float) -> Rank:
    """The place of a row in the order, at this moment."""
    if row.preemptions or row.seen:
        return Rank(row.tier, _BACK, row.sequence)
    if row.deadline == inf:
        return Rank(row.tier, _PLAIN, row.sequence)
    if row.deadline >= now:
        return Rank(row.tier, _IN_TIME, row.deadline)
    if row.first_scheduled_at is not None and row.tier < Tier.flex:
        return Rank(-1, _LATE, row.sequence)
    return Rank(row.tier, _LATE, row.sequence)


class TieredQueue(WaitingQueue):
    """Strict tiers, each with a fair share between tenants over the rows that `_shared` names."""

    def __init__(self, cost: DeviceCost, **options: Any) -> None:
        super().__init__(cost, **options)
        self._fair: dict[int, FairShare] = {}
        self._order: list[int] = []  # tiers, best first
        self._decoding = 1  # rows, when it was last looked

    def rank(self, row: Row, now: float) -> Rank:
        return rank(row, now)

    def started(self, row: Row) -> None:
        super().started(row)
        if self._shared(row):
            self._tier(row.tier).started(row)

    def settle(self, running: list[Row]) -> None:
        self._decoding = max(1, len(running))
        if any(fair.contended for fair in self._fair.values()):  # what is not charged now is charged then
            for row in running:
                self.charge(row)

    def charge(self, row: Row) -> None:
        if row.tier in self._fair and self._shared(row):
            self._fair[row.tier].charge(row, self._decoding)

    def service(self, tenant: str, tier: int) -> float:
        """Weighted device-seconds that a tenant got in a tier."""
        fair = self._fair.get(tier)
        return 0.0 if fair is None else fair.service(tenant)

    def _shared(self, row: Row) -> bool:
        """Whether the fair share counts what is done for a row."""
        return True

    def _tier(self, number: int) -> FairShare:
        fair = self._fair.get(number)
        if fair is None:
            fair = self._fair[number] = self._new_tier(number)
            self._order = sorted(self._fair)
        return fair

    def _new_tier(self, number: int) -> FairShare:
        return FairShare(self._cost)


class ContractQueue(TieredQueue):
    """The order above. Every operation is O(log n), amortised."""

    def __init__(self, cost: DeviceCost, **options: Any) -> None:
        super().__init__(cost, **options)
        self._urgent: dict[int, DeadlineLane] = {}

    def _shared(self, row: Row) -> bool:
        return row.deadline == inf

    def _new_tier(self, number: int) -> FairShare:
        self._urgent[number] = DeadlineLane()
        return super()._new_tier(number)

    def _joined(self, row: Row, now: float) -> None:
        fair = self._tier(row.tier)
        if _plain(row):
            fair.joined(row)

    def _insert(self, row: Row, now: float) -> None:
        if _plain(row):
            self._fair[row.tier].insert(row, now)
        else:
            self._urgent[row.tier].push(row, now)

    def _first(self, now: float) -> Row | None:
        for tier in self._order:
            row = self._urgent[tier].first(now) or self._fair[tier].first(now)
            if row is not None:
                return row
        return None

    def _left(self, row: Row) -> None:
        if _plain(row):
            self._fair[row.tier].left(row)


def _plain(row: Row) -> bool:
    return row.deadline == inf and not row.preemptions and not row.seen
