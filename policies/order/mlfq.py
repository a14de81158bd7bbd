"""Skip-join multi-level feedback queue (FastServe, Wu et al., 2023): short jobs first, without knowing who is short."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest
from typing import Any

from policies.order.cost import DeviceCost
from policies.order.queue import Entry, Rank, WaitingQueue
from policies.preemption import Standing
from policies.rows import Row

__all__ = ["FeedbackQueue"]


@dataclass(slots=True)
class _Job:
    level: int
    stamp: int  # order of coming to this level
    ran_at: float
    consumed_s: float = 0.0  # at this level


class FeedbackQueue(WaitingQueue):
    """Levels j = 0, 1, … with a quantum of `quantum_s` · 2^j. At every step the rows of the best levels run.

    - A request joins the highest level whose quantum is at least its predicted prefill, so that its first output comes
      before it is demoted.
    - Every row of a step consumes the predicted time of the step. Who has consumed more than its quantum goes one level
      down, to the end, with nothing consumed there; else it keeps its place, before all who came to the level later.
    - Who has not run for `starvation_s` goes to the highest level (noticed within an eighth of that).

    Rows of the lowest level give way first.
    """

    preemptive = True

    def __init__(self, cost: DeviceCost, *, quantum_s: float, levels: int, starvation_s: float, **options: Any) -> None:
        super().__init__(cost, **options)
        self._quanta = [quantum_s * 2**level for level in range(max(1, levels))]
        self._starvation_s = starvation_s
        self._look_at = 0.0
        self._stamp = 0
        self._jobs: dict[Row, _Job] = {}  # of the rows that wait or run
        self._heaps: list[list[Entry]] = [[] for _ in self._quanta]

    def rank(self, row: Row, now: float) -> Rank:
        job = self._jobs[row]
        return Rank(job.level, 0, job.stamp)

    def standing(self, row: Row) -> Standing:
        job = self._jobs[row]
        return (job.level, False, job.stamp)

    def ahead(self, most: int, now: float) -> list[Row]:
        """The first `most` waiting rows. O(rows)."""
        self._promote(now)
        waiting = (row for row in self._jobs if row.ticket > 0)
        return nsmallest(most, waiting, key=lambda row: self.rank(row, now))

    def ran(self, rows: list[Row], seconds: float, now: float) -> None:
        """These rows are in a step of so many predicted seconds."""
        for row in rows:
            job = self._jobs[row]
            job.ran_at = now
            job.consumed_s += seconds
            if job.consumed_s > self._quanta[job.level] and job.level + 1 < len(self._quanta):
                self._move(row, job.level + 1)

    def charge(self, row: Row) -> None:
        self._jobs.pop(row, None)

    def _joined(self, row: Row, now: float) -> None:
        if row in self._jobs:
            return  # it comes back from preemption, to its place
        known = self._resident(row)
        first_s = self._cost.alone_s(len(row.tokens) - known, known)
        level = next((j for j, quantum in enumerate(self._quanta) if quantum >= first_s), len(self._quanta) - 1)
        self._stamp += 1
        self._jobs[row] = _Job(level, self._stamp, now)

    def _insert(self, row: Row, now: float) -> None:
        job = self._jobs[row]
        heappush(self._heaps[job.level], Entry(job.stamp, row.ticket, row))

    def _first(self, now: float) -> Row | None:
        self._promote(now)
        for heap in self._heaps:
            while heap:
                stamp, ticket, row = heap[0]
                if ticket == row.ticket and self._jobs[row].stamp == stamp:
                    return row
                heappop(heap)
        return None

    def _move(self, row: Row, level: int) -> None:
        job = self._jobs[row]
        self._stamp += 1
        job.level, job.stamp, job.consumed_s = level, self._stamp, 0.0

    def _promote(self, now: float) -> None:
        if now < self._look_at:
            return
        self._look_at = now + self._starvation_s / 8
        for row, job in self._jobs.items():
            if job.level and now - job.ran_at >= self._starvation_s:
                self._move(row, 0)
                job.ran_at = now
                if row.ticket > 0:
                    self._insert(row, now)
