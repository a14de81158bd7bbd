"""A simulated worker: a real scheduler, a modelled device, and what is counted of both."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from random import Random

from policies.config import SchedulerConfig
from policies.events import Event, Preempted
from policies.kv import NameBlocks
from policies.rows import Flight
from policies.scheduler import Scheduler
from policies.vocabulary import Request, Step, WorkerLoad, WorkerSpec
from simulator.device import Noise, SimulatedDevice
from simulator.records import Arrival, Device, StepRecord
from simulator.requests import MODEL
from simulator.step_times import SampledStepTime

__all__ = ["SimulatedWorker"]

#: Skipping fewer steps costs more than to go through them.
_LEAST_SKIP = 2


class SimulatedWorker:
    """`arrivals` by request id. `keep`: the record of every step, in `kept`; then none is skipped. `known`: its
    scheduler knows how long steps take, instead of learning it."""

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
    ) -> None:
        spec = WorkerSpec(
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
        self.name = name
        self.step_time = SampledStepTime(device.step_time, known=known)
        self.scheduler = Scheduler(spec, config=config, step_time=self.step_time, names=names)
        self.device = SimulatedDevice(device, arrivals, noise=noise, random=Random(f"{seed} {name}"))
        self.steps = 0
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.swapped_blocks = 0
        self.live = 0  # requests
        self.awaited = False  # its oldest step is among the events
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
        self.scheduler.submit(request, now)
        self.live += 1

    def load(self, now: float) -> WorkerLoad:
        """As its scheduler reports it."""
        return self.scheduler.load(now, self.name)

    def complete(self, now: float) -> list[Event]:
        """Take the result of the oldest step, whose time has come."""
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

    def skip(self, until_s: float) -> None:
        """Take results and launch steps, before that instant, as long as nothing else happens here."""
        ahead = self.scheduler.steps_ahead() if self._queue is None else 0
        if not ahead:
            return
        flight, device = self.scheduler.newest, self.device
        slots, number = flight.step.slots, flight.step.number
        ahead = min(ahead, device.decodes_ahead(slots, self.scheduler.in_flight))
        if ahead < _LEAST_SKIP or device.launched[min(_LEAST_SKIP, len(device.launched)) - 1].due_s >= until_s:
            return
        context = flight.context - (self.scheduler.in_flight - 1) * len(slots)
        durations_s = device.decode(slots, range(number + 1, number + 1 + ahead), until_s)
        self.scheduler.skip(len(durations_s))
        self.step_time.observe_decodes(context, len(slots), durations_s)
        for seconds in durations_s:
            self.busy_s += seconds
        self.steps += len(durations_s)
        self.computed_tokens += len(durations_s) * len(slots)

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
