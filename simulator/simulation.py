"""The whole of a simulation: real schedulers and the real admission on a virtual clock.

Everything that happens at one instant is taken in first (steps that are done, then what comes due, then arrivals), and
then every worker concerned plans. There is no other source of order, so equal seeds give equal results, to the bit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf, nextafter

from msgspec.structs import replace

from policies.admission import Admit, Defer, Refuse
from policies.catalog import PolicySet
from policies.errors import Unservable
from policies.events import Event
from policies.overload import Level
from policies.vocabulary import Request
from simulator.device import Noise
from simulator.door import AnyDoor, Door, DoorMaker, Knowledge
from simulator.errors import LawBroken
from simulator.fleet import Fleet
from simulator.ledger import Ledger
from simulator.records import Arrival, Device, Outcome, Result, Workload
from simulator.requests import BlockNames, make_request

__all__ = ["Knowledge", "Simulation"]

_STEP, _WAKE = range(2)  # kinds of events, in the order in which those of one instant are taken
_PROGRESS_EVERY = 256  # arrivals


class Simulation:
    """`workload` on `workers` of a device, under `policies`.

    :param load: arrivals come so many times as fast.
    :param knowledge: what admission knows of output lengths: all, what tenants' past ones tell, or max_tokens alone. If
        it is clairvoyant, it knows all, and the schedulers know the step times of the device.
    :param step_noise: sigma of a lognormal factor on the time of each step.
    :param stragglers: share of the steps that take 5 times as long.
    :param length_noise: sigma of a lognormal factor on the lengths that an oracle tells.
    :param keep_steps: keep a record of every step.
    :param skip: advance many equal steps at once; the result is the same to the bit.
    :param door: who decides on arrivals, if not the admission of `policies`.
    """

    def __init__(
        self,
        workload: Workload,
        device: Device,
        policies: PolicySet,
        *,
        workers: int = 1,
        seed: int = 0,
        load: float = 1.0,
        knowledge: Knowledge = "history",
        step_noise: float = 0.0,
        stragglers: float = 0.0,
        length_noise: float = 0.0,
        keep_steps: bool = False,
        skip: bool = True,
        door: DoorMaker = Door,
    ) -> None:
        self._workload, self._device, self._policies = workload, device, policies
        self._seed, self._load, self._skip = seed, load, skip
        self._arrivals = workload.arrivals
        self._next = 0  # the first arrival that has not come
        self._true = {arrival.id: arrival for arrival in workload.arrivals}
        self._events: list[tuple[float, int, int]] = []  # (instant, kind, worker), a heap
        self._fleet = Fleet(
            workers,
            device,
            policies,
            names=BlockNames(workload.arrivals, workload.tenants),
            arrivals=self._true,
            noise=Noise(step_noise, stragglers),
            seed=seed,
            keep=keep_steps,
            known=knowledge == "clairvoyant",
        )
        self._ledger = Ledger()
        self.door: AnyDoor = door(
            policies,
            workload,
            self._fleet.workers,
            knowledge=knowledge,
            length_noise=length_noise,
            seed=seed,
        )
        self._wall_s = 0.0
        self._last_s = 0.0  # something happened
        self._horizon = inf  # nothing is looked at before: for those who derive
        self._level = Level.calm
        self.now = 0.0

    # Running

    def run(self, progress: Callable[[float], None] | None = None) -> Result:
        """To the end. `progress` is told the share of the arrivals that have come.

        :raises LawBroken: what came out contradicts what went in.
        """
        total = len(self._arrivals)
        while self._next < total:
            ahead = min(total, self._next + _PROGRESS_EVERY) - 1
            self.run_until(self._at(ahead))
            if progress is not None:
                progress(self._next / total)
        self.run_until(inf)
        self._check()
        return self.result()

    def run_until(self, instant_s: float) -> None:
        """All that happens up to that instant, and at it."""
        begun = time.perf_counter()
        self._horizon = nextafter(instant_s, inf)
        while (instant := self._upcoming()) <= instant_s and instant < inf:
            self.now = self._last_s = self._fleet.now = instant
            self._happen(instant)
        if instant_s < inf:
            self.now = max(self.now, instant_s)
        self._wall_s += time.perf_counter() - begun

    def fork(self) -> Simulation:
        """An independent simulation that goes on from here, to the same end."""
        shared: tuple[object, ...] = (self._workload, self._device, self._policies, self._true, self._arrivals)
        shared += (self._workload.tenants, *self.door.shared)
        return copy.deepcopy(self, {id(thing): thing for thing in shared})

    def come_again(self, request: str) -> None:
        """That request, which is over, comes once more, now, before all that are yet to come: the next outcome."""
        at_s = self.now * self._load
        while at_s / self._load < self.now:
            at_s = nextafter(at_s, inf)
        arrivals, first = self._arrivals, self._next
        self._arrivals = [*arrivals[:first], replace(self._true[request], at_s=at_s), *arrivals[first:]]

    def is_live(self, request: str) -> bool:
        """Whether it has come and is not over."""
        return request in self._ledger.live

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """In order of arrival, as far as it has come. Not a copy: those that are not over change."""
        return self._ledger.outcomes

    def _upcoming(self) -> float:
        """The instant of the next event; inf: there is none."""
        arrival = self._at(self._next) if self._next < len(self._arrivals) else inf
        door = self.door.next_s
        if door < arrival:
            arrival = max(door, self.now)
        events = self._events
        while events and self._is_off(*events[0]):
            heappop(events)
        return min(arrival, events[0][0]) if events else arrival

    def _is_off(self, instant_s: float, kind: int, number: int) -> bool:
        """Whether a worker that was to wake then was roused before."""
        if kind != _STEP:
            return False
        worker = self._fleet.workers[number]
        return not worker.awaited or worker.awaited_s != instant_s

    def _at(self, number: int) -> float:
        return self._arrivals[number].at_s / self._load

    # Events

    def _happen(self, now: float) -> None:
        events, touched = self._events, self._fleet.roused
        while events and events[0][0] == now:
            _, kind, number = event = heappop(events)
            if self._is_off(*event):
                continue
            touched.add(number)
            if kind == _STEP:
                self._step_done(number, now)
        if self.door.next_s <= now:
            for decided in self.door.due(now):
                worker = self._decided(decided.request, decided.verdict, now)
                if worker is not None:
                    touched.add(worker)
        arrivals, total = self._arrivals, len(self._arrivals)
        while self._next < total and self._at(self._next) <= now:
            arrival = arrivals[self._next]
            self._next += 1
            worker = self._arrived(arrival, now)
            if worker is not None:
                touched.add(worker)
        level = self.door.level_at(now)
        if level is not self._level:
            self._level = level
            for number, simulated in enumerate(self._fleet.workers):
                simulated.relieve(level, now)
                touched.add(number)
        for number in sorted(touched):
            self._pump(number, now)
        touched.clear()

    def _step_done(self, number: int, now: float) -> None:
        worker = self._fleet.workers[number]
        worker.awaited = False
        events = worker.complete(now)
        for request, gap_s in worker.take_gaps():
            self._ledger.paused(request, gap_s)
        self._told(events, now)

    def _told(self, events: list[Event], now: float) -> None:
        """What a scheduler told."""
        if not events:
            return
        self._fleet.heard(events)
        for end in self._ledger.take(events):
            self.door.changed(self._fleet.ended(end.request), now)
            self.door.settled(end.outcome, now)

    def _arrived(self, arrival: Arrival, now: float) -> int | None:
        """A request comes. The worker that it is given to, if any."""
        request = make_request(arrival, self._workload.tenants[arrival.tenant])
        self._ledger.arrived(arrival, request, now)
        verdict = self.door.arrive(request, now)
        return None if isinstance(verdict, Defer) else self._decided(request, verdict, now)

    def _decided(self, request: Request, verdict: Admit | Refuse, now: float) -> int | None:
        """A request is let in, and given to a worker; or it is refused."""
        outcome = self._ledger.of(request.id)
        outcome.decided_s, outcome.predicted_ttft_s = now, verdict.predicted_ttft_s or None
        if isinstance(verdict, Refuse):
            self._ledger.over(request.id)
            outcome.decision, outcome.reason = "refused", verdict.reason.value
            outcome.retry_after_s = verdict.retry_after_s
            return None
        terms = (verdict.tier, verdict.ttft_s, verdict.tpot_s, verdict.worker, verdict.outputs)
        if terms != (request.tier, request.ttft_s, request.tpot_s, request.worker, request.expected_outputs):
            tier, ttft_s, tpot_s, chosen, outputs = terms
            request = replace(request, tier=tier, ttft_s=ttft_s, tpot_s=tpot_s, worker=chosen, expected_outputs=outputs)
        number = self._fleet.place(request)
        try:
            self._fleet.submit(request, number, now)
        except Unservable:
            self._ledger.over(request.id)
            outcome.decision, outcome.reason = "refused", "unservable"
            self.door.settled(outcome, now)
            return None
        self.door.changed(number, now)
        outcome.decision = "relegated" if verdict.relegated else "admitted"
        outcome.worker = self._fleet.workers[number].name
        return number

    def _pump(self, number: int, now: float) -> None:
        worker = self._fleet.workers[number]
        self._told(worker.pump(now), now)
        if worker.awaited:
            return
        due = worker.doze() if self._skip else None
        if due is None:
            due = worker.due_s
        if due is not None:
            worker.awaited, worker.awaited_s = True, due
            heappush(self._events, (due, _STEP, number))
        elif (wake := worker.scheduler.wake_at(now)) < inf:
            heappush(self._events, (max(wake, nextafter(now, inf)), _WAKE, number))

    # Results

    def result(self) -> Result:
        """As far as it has come."""
        workers, ledger = self._fleet.workers, self._ledger
        for worker in workers:
            worker.catch_up(nextafter(self.now, inf))
        judged = sum(worker.step_time.judged for worker in workers)
        return Result(
            workload=self._workload.name,
            policy=self._policies.name,
            device=self._device.name,
            workers=len(workers),
            load=self._load,
            seed=self._seed,
            outcomes=ledger.outcomes[:],
            ended_s=self._last_s if self._upcoming() == inf else self.now,
            wall_s=self._wall_s,
            steps=sum(worker.steps for worker in workers),
            busy_s=sum(worker.busy_s for worker in workers),
            computed_tokens=sum(worker.computed_tokens for worker in workers),
            lost_tokens=ledger.lost_tokens,
            swapped_bytes=sum(worker.swapped_blocks for worker in workers) * self._device.block_bytes,
            step_coverage=sum(worker.step_time.covered for worker in workers) / judged if judged else None,
            step_error=sum(worker.step_time.error for worker in workers) / judged if judged else None,
            steps_kept=[record for worker in workers for record in worker.kept],
        )

    def _check(self) -> None:
        """The laws of conservation, once everything is over."""
        ledger = self._ledger
        if (
            ledger.live and self._policies.scheduler.batching != "static"
        ):  # there, the last may wait for company forever
            raise LawBroken(f"{len(ledger.live)} requests never ended, the first is {next(iter(ledger.live))}")
        if len(ledger.outcomes) != len(self._arrivals):
            raise LawBroken(f"{len(self._arrivals)} requests came, {len(ledger.outcomes)} are known")
        for outcome in ledger.outcomes:
            if outcome.finished_s is not None and outcome.generated != outcome.output_tokens:
                raise LawBroken(f"{outcome.id}: {outcome.generated} outputs, it has {outcome.output_tokens}")
        for worker in self._fleet.workers:
            used = worker.scheduler.census().used_blocks
            if used or (worker.live and not ledger.live):
                raise LawBroken(f"worker {worker.name}: {used} blocks and {worker.live} requests are left over")
            worker.scheduler.check_integrity()
