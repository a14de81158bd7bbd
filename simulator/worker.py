"""A simulated worker: a real scheduler, a modelled device, and what is counted of both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from copy import deepcopy
from math import inf
from random import Random

from policies.config import SchedulerConfig
from policies.events import Event, Preempted
from policies.kv import NameBlocks
from policies.overload import Level
from policies.rows import Flight
from policies.scheduler import Scheduler
from policies.vocabulary import Request, Step, WorkerLoad, WorkerSpec
from simulator.device import Foreseen, Noise, SimulatedDevice
from simulator.records import Arrival, Device, StepRecord
from simulator.requests import MODEL
from simulator.step_times import SampledStepTime

__all__ = ["SimulatedWorker", "worker_spec"]

#: Skipping fewer steps costs more than to go through them.
_LEAST_SKIP = 2


class SimulatedWorker:
    """`arrivals` by request id. `keep`: the record of every step, in `kept`; then none is skipped. `known`: its
    scheduler knows how long steps take, instead of learning it.

    While every step only gives each row a token, a worker may be asleep (`doze`): its steps are gone through when the
    next thing happens to it, or somebody looks. So what it costs does not depend on what happens to other workers.
    `number` is its own; it is added to `roused` if a look makes it plan at that instant.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        config: SchedulerConfig,
        *,
        names: NameBlocks,
        arrivals: Mapping[str, Arrival],
        noise: Noise,
        seed: int,
        keep: bool,
        known: bool = False,
        number: int = 0,
        roused: set[int] | None = None,
    ) -> None:
        spec = worker_spec(device)
        self.name = name
        self.step_time = SampledStepTime(device.step_time, known=known)
        self.scheduler = Scheduler(spec, config=config, step_time=self.step_time, names=names)
        self.device = SimulatedDevice(device, arrivals, noise=noise, random=Random(f"{seed} {name}"))
        self.steps = 0
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.swapped_blocks = 0
        self.live = 0  # requests
        self.awaited = False  # its oldest step is among the events, or the first after which it is not asleep ...
        self.awaited_s = inf  # ... for this instant
        self._asleep: Foreseen | None = None
        self._number = number
        self._roused: set[int] = set() if roused is None else roused
        self._paused: dict[str, float] = {}  # preempted request → instant of its last output, or of the preemption
        self._gaps: list[tuple[str, float]] = []
        self._queue: list[StepRecord] | None = [] if keep else None
        self.kept: list[StepRecord] = []

    def __deepcopy__(self, memo: dict[int, object]) -> SimulatedWorker:
        """Independent; records of steps are shared."""
        other = memo[id(self)] = object.__new__(SimulatedWorker)
        for name, value in self.__dict__.items():
            setattr(other, name, value[:] if isinstance(value, list) else deepcopy(value, memo))
        return other

    @property
    def due_s(self) -> float | None:
        """When the oldest step on the device is done; None: the device is idle."""
        launched = self.device.launched
        return launched[0].due_s if launched else None

    def submit(self, request: Request, now: float) -> None:
        """Queue a request.

        :raises Unservable: this worker could never serve it.
        """
        self._rouse(now)
        self.scheduler.submit(request, now)
        self.live += 1

    def relieve(self, level: Level, now: float) -> None:
        """From now on give up what that level of the overload ladder says."""
        self._rouse(now)
        self.scheduler.relieve(level)

    def load(self, now: float) -> WorkerLoad:
        """As its scheduler reports it."""
        if self._asleep is not None:
            self.catch_up(now)
            if self.due_s == now:
                self._rouse(now)
                self._roused.add(self._number)
        return self.scheduler.load(now, self.name)

    def complete(self, now: float) -> list[Event]:
        """Take the result of the oldest step, whose time has come."""
        self._wake_up(now)
        done = self.device.launched.popleft().done
        self.busy_s += done.duration_s
        if self._queue is not None:
            self.kept.append(self._queue.pop(0))
        if not self._paused:
            return self.scheduler.complete(done, now)
        flight = self.scheduler.oldest
        events = self.scheduler.complete(done, now)
        self._note_gaps(flight, now)
        return events

    def take_gaps(self) -> list[tuple[str, float]]:
        """Since the last time: requests that had an output again after a preemption, and the seconds between."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def _note_gaps(self, flight: Flight, now: float) -> None:
        """Outputs of a step in flight may still come after the preemption; the first one after the next start ends the
        pause."""
        for i, row in enumerate(flight.rows):
            since = self._paused.get(row.request.id)
            if since is None or (i >= flight.decodes and not flight.samples[i - flight.decodes]):
                continue
            if row.generated > 1:
                self._gaps.append((row.request.id, now - since))
            self._paused[row.request.id] = now
            if row.slot >= 0 or row.finish:
                del self._paused[row.request.id]

    def pump(self, now: float) -> list[Event]:
        """Plan and launch steps until enough are in flight."""
        scheduler = self.scheduler
        while (step := scheduler.plan(now)) is not None:
            self._launch(step, now)
        events = scheduler.take_events()
        for event in events:
            if isinstance(event, Preempted):
                self._paused[event.request] = event.at
        return events

    def doze(self) -> float | None:
        """Sleep as long as steps only give each row a token: until the instant of the first result after those; None:
        there are hardly any."""
        self._asleep = self._foresee(inf)
        return None if self._asleep is None else self._asleep.dues[self._asleep.most]

    def skip(self, until_s: float) -> None:
        """Take results and launch steps, before that instant, as long as nothing else happens here."""
        self._asleep = self._foresee(until_s)
        self._wake_up(until_s)

    def _foresee(self, until_s: float) -> Foreseen | None:
        ahead = self.scheduler.steps_ahead() if self._queue is None else 0
        if not ahead:
            return None
        slots, device = self.scheduler.newest.step.slots, self.device
        ahead = min(ahead, device.decodes_ahead(slots, self.scheduler.in_flight))
        if ahead < _LEAST_SKIP or device.launched[min(_LEAST_SKIP, len(device.launched)) - 1].due_s >= until_s:
            return None
        return device.foresee(slots, ahead, until_s)

    def catch_up(self, now: float) -> None:
        """If it is asleep: all that happens before that instant."""
        foreseen = self._asleep
        if foreseen is None:
            return
        count = bisect_left(foreseen.dues, now, foreseen.taken, foreseen.most) - foreseen.taken
        if not count:
            return
        flight, rows = self.scheduler.newest, len(foreseen.slots)
        context = flight.context - (self.scheduler.in_flight - 1) * rows
        durations_s = self.device.take(foreseen, count, flight.step.number + 1)
        self.scheduler.skip(count)
        self.step_time.observe_decodes(context, rows, durations_s)
        for seconds in durations_s:
            self.busy_s += seconds
        self.steps += count
        self.computed_tokens += count * rows

    def _wake_up(self, now: float) -> None:
        """Not asleep from now on."""
        if self._asleep is not None:
            self.catch_up(now)
            self.device.forget(self._asleep)
            self._asleep = None

    def _rouse(self, now: float) -> None:
        """Something else comes at this instant: what it waited for does not."""
        if self._asleep is not None:
            self._wake_up(now)
            self.awaited = False
            if self.due_s == now:
                self.complete(now)  # tells nothing, since no row ends

    def _launch(self, step: Step, now: float) -> None:
        launched = self.device.launch(step, now)
        self.steps += 1
        self.computed_tokens += sum(step.counts)
        self.swapped_blocks += len(step.swap_out) + len(step.swap_in)
        if self._queue is not None:
            self._queue.append(self._record(step, launched.begun_s, launched.due_s))

    def _record(self, step: Step, begun_s: float, ended_s: float) -> StepRecord:
        flight = self.scheduler.newest
        census = self.scheduler.census()
        return StepRecord(
            self.name,
            step.number,
            begun_s,
            ended_s,
            self.step_time.predict(flight.tokens, flight.attended, flight.context, len(flight.rows)),
            [row.request.id for row in flight.rows],
            step.counts[:],
            [i >= flight.decodes for i in range(len(flight.rows))],
            census.waiting,
            census.running,
            census.used_blocks,
            len(step.swap_out),
            len(step.swap_in),
        )


def worker_spec(device: Device) -> WorkerSpec:
    """A device model as a worker would tell it of itself."""
    return WorkerSpec(
        MODEL,
        "simulated",
        device.blocks,
        device.host_blocks,
        device.block_bytes,
        device.slots,
        device.tokens_per_step,
        device.max_context,
        device.swap_bytes_per_s,
        device.step_time,
    )
