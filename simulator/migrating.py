"""A fleet whose requests move between workers while they run (Llumnix): the moves of `policies.migration`, carried out.

Every `MigrationPolicy.every_s` workers that run short of memory are paired with those that have plenty. A copy is under
way while its request decodes on; the request is on one worker at any time, or on none while its last block travels. A
worker takes part in one copy at a time. Links are as in `simulator.moving`.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

import msgspec

from policies.admission import Admit, Refuse
from policies.catalog import PolicySet
from policies.disaggregation import kv_bytes
from policies.events import Event, Finished, FirstToken, Preempted, Scheduled
from policies.migration import Balance, Migration, MigrationPolicy, Movable, Stage, choose_moves
from policies.placement import Ask, blocks_of, virtual_usage
from policies.vocabulary import Request
from simulator.errors import BadFleet
from simulator.moving import MovingSimulation
from simulator.records import Device, Workload
from simulator.requests import make_request

__all__ = ["MigratingSimulation", "Moved"]


class Moved(msgspec.Struct, frozen=True):
    """A migration that was carried out."""

    request: str
    source: str
    destination: str
    tokens: int
    stages: int
    stopped_s: float  # instant at which the source let it go
    resumed_s: float  # instant from which the destination may run it


class _Copy(msgspec.Struct):
    migration: Migration
    source: int
    destination: int
    request: Request  # as it was submitted; once it has stopped, as it goes on
    stopped_s: float = 0.0


class MigratingSimulation(MovingSimulation):
    """As `Simulation`, with live migration under `migration`.

    `moved` has the migrations that were carried out, `aborted` says why others were not.

    :raises BadFleet: for a single worker.
    """

    def __init__(
        self,
        workload: Workload,
        device: Device,
        policies: PolicySet,
        *,
        workers: int = 2,
        migration: MigrationPolicy | None = None,
        **options: Any,
    ) -> None:
        super().__init__(workload, device, policies, workers=workers, **options)
        self._policy = migration or MigrationPolicy()
        if self._fleet.placer is None:
            raise BadFleet(f"{workers} worker: there must be two at least for requests to move between")
        self._place = self._fleet.placer
        self._copies: dict[str, _Copy] = {}  # by request
        self._timers: list[tuple[float, str]] = []  # (instant, request whose copy is done), a heap
        self._next_round_s: float | None = None
        self._resumed: set[str] = set()  # requests that begin again elsewhere
        self.moved: list[Moved] = []
        self.aborted: list[str] = []

    def drain(self, number: int) -> None:
        """Worker `number` is to end: it gets no new request from now on, and those that it has leave it."""
        self._place.drain(self._fleet.workers[number].name)
        self._schedule_round(self.now)

    def _may_skip(self) -> bool:
        return not self._copies  # a copy follows what its source has computed, step by step

    # Events

    def _due(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            copy = self._copies.get(heappop(self._timers)[1])
            if copy is not None:
                self._copied(copy, now)
        if self._next_round_s is not None and self._next_round_s <= now:
            self._next_round_s = None
            self._round(now)

    def _decided(self, request: Request, verdict: Admit | Refuse, now: float) -> int | None:
        number = super()._decided(request, verdict, now)
        self._schedule_round(now)
        return number

    def _take(self, number: int, events: list[Event], now: float) -> None:
        """A request begins and has its first token once, wherever it is. One that ends or gives way stays."""
        told = []
        for event in events:
            if isinstance(event, (Finished, Preempted)):
                copy = self._copies.get(event.request)
                if copy is not None:
                    self._abort(copy, "over" if isinstance(event, Finished) else "preempted", now)
            elif isinstance(event, (Scheduled, FirstToken)) and event.request in self._resumed:
                self._fleet.heard([event])
                continue
            if isinstance(event, Finished):
                self._resumed.discard(event.request)
            told.append(event)
        self._told(told, now)

    # Rounds

    def _schedule_round(self, now: float) -> None:
        if self._next_round_s is None and self._ledger.live:
            self._next_round_s = now + self._policy.every_s
            self._wake(self._next_round_s, 0)

    def _round(self, now: float) -> None:
        busy = {name for copy in self._copies.values() for name in (copy.migration.move[1:])}
        balances, movable = [], {}
        for name, view in self._place.book.views.items():
            self._place.book.refresh(view)
            free = view.spec.blocks - view.used_blocks
            balance = Balance(name, view.spec.blocks, virtual_usage(view), view.running, free)
            balances.append(balance)
            if balance.freeness < self._policy.low and name not in busy:
                movable[name] = self._movable(name, now)
        for move in choose_moves(balances, movable, policy=self._policy, busy=busy):
            source, destination = self._number[move.source], self._number[move.destination]
            arrival = self._true[move.request]
            computed = self._fleet.workers[source].scheduler.kv_tokens(move.request)
            migration = Migration(move, computed=computed, policy=self._policy)
            request = make_request(arrival, self._workload.tenants[arrival.tenant])
            self._copies[move.request] = copy = _Copy(migration, source, destination, request)
            self._reserve(copy, now)
        self._schedule_round(now)

    def _movable(self, worker: str, now: float) -> list[Movable]:
        """The requests that decode there."""
        load = self._fleet.workers[self._number[worker]].scheduler.load(now, worker)
        return [
            Movable(row.id, row.tier, blocks_of(row.context))
            for row in load.requests
            if row.prefill_left <= 1 and row.generated and row.context
        ]

    # Copies

    def _reserve(self, copy: _Copy, now: float) -> None:
        migration = copy.migration
        destination = self._fleet.workers[copy.destination].scheduler
        migration.reserved(granted=destination.expect(copy.request, now, tokens=migration.want))
        if migration.stage is Stage.aborted:
            self._forget(copy, now)
        else:
            self._send(copy, now)

    def _send(self, copy: _Copy, now: float) -> None:
        move = copy.migration.move
        count = kv_bytes(copy.migration.copy, self._device.block_bytes)
        done_s = self._links.send(move.source, move.destination, count, now).done_s
        heappush(self._timers, (done_s, move.request))
        self._wake(done_s, copy.destination)

    def _copied(self, copy: _Copy, now: float) -> None:
        """The next stage, whatever it is."""
        migration = copy.migration
        request, source = migration.move.request, self._fleet.workers[copy.source]
        migration.copied(source.scheduler.kv_tokens(request))
        if migration.stage is Stage.reserving:
            self._reserve(copy, now)
        elif migration.stage is Stage.stopping:
            computed = source.scheduler.kv_tokens(request)
            handed = source.scheduler.hand_over(request, now, keep=True)
            if handed is None:
                self._abort(copy, "not let go", now)
                return
            self._part(request, now)
            migration.stopped(computed)
            copy.request, copy.stopped_s = handed, now
            self._send(copy, now)
        elif migration.stage is Stage.aborted:
            self._forget(copy, now)
        elif migration.stage is Stage.done:
            self._resume(copy, now)

    def _resume(self, copy: _Copy, now: float) -> None:
        migration, request = copy.migration, copy.request
        worker = self._fleet.workers[copy.destination]
        del self._copies[request.id]
        self._fleet.workers[copy.source].scheduler.abandon(request.id)
        self._touched.add(copy.source)
        self._resumed.add(request.id)
        worker.scheduler.deliver(request, now, computed=migration.sent)
        self._join(copy.destination, request, now)
        known = (len(request.prompt) + len(request.generated)) // 4
        end = len(request.prompt) // 4 + request.max_tokens
        self._place.submitted(Ask(request.id, known, end, end - known, request.tier), worker.name)
        self.moved.append(
            Moved(
                request.id,
                migration.move.source,
                worker.name,
                migration.sent,
                migration.stages,
                copy.stopped_s,
                now,
            )
        )

    def _abort(self, copy: _Copy, why: str, now: float) -> None:
        copy.migration.abort(why)
        self._forget(copy, now)

    def _forget(self, copy: _Copy, now: float) -> None:
        self.aborted.append(copy.migration.why)
        del self._copies[copy.migration.move.request]
        self._fleet.workers[copy.destination].scheduler.abandon(copy.migration.move.request)
        self._touched.add(copy.destination)
