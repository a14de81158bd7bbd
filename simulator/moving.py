"""What simulations in which requests change workers have in common."""

from __future__ import annotations

from heapq import heappush
from math import inf, nextafter
from typing import Any

from policies.catalog import PolicySet
from policies.events import Event
from policies.links import Links
from policies.vocabulary import Request
from simulator.records import Device, Result, Workload
from simulator.simulation import Simulation

__all__ = ["MovingSimulation"]

_STEP, _MOVED = 0, 7  # kinds of events: a step is done; something has come to a worker


class MovingSimulation(Simulation):
    """Workers with links between them. Whoever derives says what becomes of events, and what happens when.

    :param latency_s: of a transfer, besides its bytes over `Device.transfer_bytes_per_s`.
    """

    def __init__(
        self,
        workload: Workload,
        device: Device,
        policies: PolicySet,
        *,
        workers: int,
        latency_s: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(workload, device, policies, workers=workers, **options)
        self._links = Links(device.transfer_bytes_per_s, latency_s=latency_s)
        self._number = {worker.name: number for number, worker in enumerate(self._fleet.workers)}
        self._touched: set[int] = set()

    def _join(self, number: int, request: Request, now: float) -> None:
        """A request goes on at a worker, where its KV has come."""
        worker = self._fleet.workers[number]
        worker.live += 1
        self._fleet.home[request.id] = number
        self._touched.add(number)
        self.door.changed(number, now)
        self._ledger.of(request.id).worker = worker.name

    def _part(self, request: str, now: float) -> None:
        """A request leaves its worker, and is on none."""
        number = self._fleet.ended(request)
        self._touched.add(number)
        self.door.changed(number, now)

    # For those who derive

    def _due(self, now: float) -> None:
        """Something other than a step may be due."""
        raise NotImplementedError

    def _take(self, number: int, events: list[Event], now: float) -> None:
        """What the scheduler of worker `number` told."""
        raise NotImplementedError

    def _wake(self, instant_s: float, number: int) -> None:
        """Call `_due` at that instant, and plan on worker `number` then."""
        heappush(self._events, (instant_s, _MOVED, number))

    def _may_skip(self) -> bool:
        """Whether steps that change nothing may be skipped now."""
        return True

    # Events

    def _happen(self, now: float) -> None:
        self._due(now)
        super()._happen(now)
        self._go_on(now)

    def _step_done(self, number: int, now: float) -> None:
        worker = self._fleet.workers[number]
        worker.awaited = False
        events = worker.complete(now)
        for request, gap_s in worker.take_gaps():
            self._ledger.paused(request, gap_s)
        self._take(number, events, now)

    def _pump(self, number: int, now: float) -> None:
        self._touched.add(number)

    def _go_on(self, now: float) -> None:
        """Plan where something changed, all before any worker skips ahead: what one does may concern the others."""
        planned: set[int] = set()
        while self._touched:
            number = min(self._touched)
            self._touched.remove(number)
            planned.add(number)
            self._take(number, self._fleet.workers[number].pump(now), now)
        dues: dict[int, float] = {}
        for number in sorted(planned):
            worker = self._fleet.workers[number]
            if worker.awaited:
                continue
            if (due := worker.due_s) is not None:
                dues[number] = due
            elif (wake := worker.scheduler.wake_at(now)) < inf:
                self._wake(max(wake, nextafter(now, inf)), number)
        while dues:
            number = next(iter(dues))
            worker = self._fleet.workers[number]
            del dues[number]
            if self._skip and self._may_skip():
                worker.skip(min([self._upcoming(), self._horizon, *dues.values()]))
            if worker.due_s is not None:
                worker.awaited, worker.awaited_s = True, worker.due_s
                heappush(self._events, (worker.due_s, _STEP, number))

    # Results

    def result(self) -> Result:
        """As far as it has come."""
        result = super().result()
        result.transferred_bytes = self._links.moved_bytes
        return result
