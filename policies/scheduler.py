"""The scheduler of one worker: what its next step runs.

Sans-I/O and without a clock: `now` (seconds, any origin, never going back) comes in, steps and events come out. The
actor feeds it messages, the simulator a virtual clock, the tests chaos.

It plans ahead: with two steps in flight, step n + 1 is planned before the result of step n is known. A decode row of
n + 1 takes the output of n as a placeholder, so plans carry counts and never sampled ids; what a row turns out to have
been given too much (it ended on a stop token) comes back absent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

import msgspec

from policies import reports
from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.errors import StepRefused, Unservable, WorkerMismatch
from policies.events import Event
from policies.integrity import check_integrity
from policies.kv import KvMemory, NameBlocks, hash_names
from policies.order import DeviceCost, waiting_queue
from policies.overload import Level, under
from policies.planner import Planner
from policies.rows import Flight, Place, Row
from policies.running import Running, worst_case
from policies.steady import advance, steps_ahead
from policies.step_time import Features
from policies.views import CoreView, view_rows
from policies.vocabulary import (
    BLOCK_SIZE,
    Finish,
    Request,
    Step,
    StepDone,
    WorkerLoad,
    WorkerSpec,
    pack_tokens,
)

__all__ = ["Census", "Live", "Scheduler"]


class Census(NamedTuple):
    """How full a worker is."""

    waiting: int  # requests without a slot
    running: int
    used_blocks: int


class Live(NamedTuple):
    """A request that a worker has not finished, for handing back."""

    request: Request
    attempt: int
    gateway: str
    generated: bytes  # packed outputs that are known here; its gateway may have seen more


class Scheduler:
    """Drives one worker, through one pool of KV blocks.

    Not thread-safe. `submit`, `cancel` and `complete` take effect in the next `plan`.
    """

    def __init__(
        self, spec: WorkerSpec, *, config: SchedulerConfig, step_time: StepTime, names: NameBlocks = hash_names
    ) -> None:
        self.spec = spec
        self._names = names
        if config.preemption == "none":
            config = msgspec.structs.replace(config, max_preemptions=0)
        if not config.prefix_cache:  # then nobody gains by waiting for another's prefix
            config = msgspec.structs.replace(config, single_flight_tokens=spec.max_context + 1)
        self.config = config
        #: Called with each acknowledged step, its result, and the seconds that it was predicted to take. For a look
        #: only: nothing of the flight may be changed, or kept beyond the call.
        self.on_step: Callable[[Flight, StepDone, float], None] | None = None
        self._step_time = step_time
        self._steps_timed = 0
        self._reset()

    def _reset(self) -> None:
        spec, config = self.spec, self.config
        self._level, self._relieved = Level.calm, config
        self._rows: dict[str, Row] = {}
        self._events: list[Event] = []
        self._flights: deque[Flight] = deque()
        self._early: dict[int, StepDone] = {}
        self._planned = 0
        self._sequence = 0
        self._kv = KvMemory(
            spec.blocks,
            spec.host_blocks,
            names=self._names,
            keep_copies=config.offload_share > 0,
            share=config.prefix_cache,
        )
        slots = min(spec.slots, spec.tokens_per_step)  # so that every running row decodes in every step
        self._running = Running(slots, max_preemptions=config.max_preemptions)
        self._waiting = waiting_queue(
            config,
            self._step_time,
            tokens_per_step=spec.tokens_per_step,
            resident=self._resident,
        )
        self._planner = Planner(
            spec,
            config,
            self._step_time,
            kv=self._kv,
            running=self._running,
            waiting=self._waiting,
            events=self._events,
        )

    # Requests

    def submit(self, request: Request, now: float) -> None:
        """Queue a request. Submitted again it is ignored; a later attempt takes the place of an earlier one.

        :raises Unservable: if this worker could never serve it.
        """
        known = self._rows.get(request.id)
        if known is not None and request.attempt <= known.request.attempt:
            return
        self._admit(self._new_row(request, now), known, now)

    def _new_row(self, request: Request, now: float) -> Row:
        self._sequence += 1
        row = Row(request, sequence=self._sequence, now=now)
        self._check_servable(row)
        return row

    def _admit(self, row: Row, known: Row | None, now: float) -> None:
        """A row waits from now on, in place of the one of an earlier attempt."""
        if known is not None:
            self._end(known, Finish.cancelled, now)
        self._rows[row.request.id] = row
        self._waiting.push(row, now)

    def _check_servable(self, row: Row) -> None:
        name, spec = row.request.id, self.spec
        if not row.prompt_tokens:
            raise Unservable(f"request {name}: the prompt is empty; it must have at least one token")
        if row.left <= 0:
            raise Unservable(
                f"request {name}: max_tokens is {row.request.max_tokens}, but {row.seen} outputs are given"
            )
        if row.end > spec.max_context:
            raise Unservable(
                f"request {name}: {row.prompt_tokens} prompt tokens + max_tokens {row.request.max_tokens} "
                f"exceed the context of {spec.max_context}"
            )
        if (blocks := worst_case(row)) > spec.blocks:
            raise Unservable(f"request {name}: needs {blocks} KV blocks at its longest, the worker has {spec.blocks}")

    def cancel(self, request_id: str, now: float) -> None:
        """Stop a request; unknown ones are ignored. Its blocks are free at once, fenced by the steps in flight.

        `Finished` comes once no step touches it any more, so that its outputs are counted exactly.
        """
        row = self._rows.get(request_id)
        if row is not None:
            self._end(row, Finish.cancelled, now)

    # Requests that come with their KV, or leave for another worker

    def expect(self, request: Request, now: float, *, tokens: int) -> bool:
        """Hold blocks for the first `tokens` tokens of a request that will be delivered with its KV; called again with
        more tokens, it holds more. False, and nothing changed, if they are not free beside what running rows are about
        to need. They count as used, and nobody is preempted for them, nor they for anybody."""
        transit = self._kv.transit
        missing = transit.missing(request.id, tokens)
        if missing and not self._planner.may_expect(missing):
            return False
        transit.extend(request.id, missing)
        return True

    def abandon(self, request_id: str) -> None:
        """Give back the blocks that `expect` held, or `hand_over` kept; unknown requests are ignored. Nobody may write
        to or read from them any more."""
        self._kv.transit.give_back(request_id)

    def deliver(self, request: Request, now: float, *, computed: int) -> None:
        """Queue a request whose KV has arrived: that of its first `computed` tokens (prompt, then `generated`) is in
        the blocks that were held for it. It waits as one that comes back from preemption, and goes on where it stopped;
        at least its last known token is computed here. What it has no blocks for is computed again.

        As for `submit`, what is known here is ignored; then the blocks are given back.

        :raises Unservable: if this worker could never serve it; the blocks are given back.
        """
        known = self._rows.get(request.id)
        try:
            if known is not None and request.attempt <= known.request.attempt:
                return
            row = self._new_row(request, now)
            blocks = self._kv.transit.take(request.id)
            self._kv.adopt(row, blocks, min(computed, len(blocks) * BLOCK_SIZE, len(row.tokens) - 1))
            self._admit(row, known, now)
        finally:
            self._kv.transit.give_back(request.id)

    def hand_over(self, request_id: str, now: float, *, keep: bool = False) -> Request | None:
        """Stop a request here, for another worker, and return it with all outputs that are known; None if it is over.

        Nothing more is told of it. Outputs of steps in flight are dropped and will be sampled there again: whoever
        passes outputs on as they are sampled gives the request a later attempt. Its blocks are free, fenced by the
        steps in flight; with `keep` they stay held, for copying, until `abandon`.
        """
        row = self._rows.pop(request_id, None)
        if row is None:
            return None
        if keep:
            self._kv.lend(row)
        self._retire(row, Finish.error)  # so that what is in flight is neither counted nor told
        request = row.request
        if not row.generated and row.deadline < inf:
            request = msgspec.structs.replace(request, ttft_s=max(0.0, row.deadline - now))
        return msgspec.structs.replace(request, generated=pack_tokens(row.tokens[row.prompt_tokens :]))

    def kv_tokens(self, request_id: str) -> int:
        """How many of a request's first tokens have KV in its blocks, acknowledged: what can be copied now."""
        row = self._rows.get(request_id)
        if row is None or row.started > self._kv.device.acknowledged:  # it may be on its way in from the host
            return 0
        return min(row.computed, len(row.blocks) * BLOCK_SIZE)

    def kv_blocks(self, request_id: str) -> list[int]:
        """The device blocks of positions 0, 16, 32, … of a request that is here, expected, or handed over and kept."""
        row = self._rows.get(request_id)
        return self._kv.transit.blocks(request_id)[:] if row is None else row.blocks[:]

    def _resident(self, row: Row) -> int:
        """Tokens of a waiting row that need no computing."""
        return self._kv.look(row).computed

    # Steps

    @property
    def in_flight(self) -> int:
        """Steps planned and not acknowledged."""
        return len(self._flights)

    @property
    def oldest(self) -> Flight:
        """The step in flight whose result comes next."""
        return self._flights[0]

    @property
    def newest(self) -> Flight:
        """The step that was planned last, which is in flight."""
        return self._flights[-1]

    def unacknowledged(self) -> list[Step]:
        """The steps in flight, the oldest first, for sending them again."""
        return [flight.step for flight in self._flights]

    def plan(self, now: float) -> Step | None:
        """The next step; None if there is nothing to do, or enough steps are in flight."""
        if len(self._flights) >= self.config.steps_in_flight:
            return None
        if self.config.shed_hopeless:
            for row in self._waiting.hopeless(now):
                self._end(row, Finish.error, now)
        flight = self._planner.plan(self._planned + 1, now, alone=not self._flights)
        if flight is None:
            return None
        self._planned += 1
        self._flights.append(flight)
        return flight.step

    def relieve(self, level: Level) -> None:
        """Give up what that level of the overload ladder says, and no more: see `policies.overload`."""
        if level is not self._level:
            self._level = level
            self._relieved = under(level, self.config)
            self._planner.relieve(self._relieved)

    def wake_at(self, now: float) -> float:
        """When to `plan` again, after it gave nothing, if nothing else happens until then: an instant, not before
        `now`; inf if time alone changes nothing. A batch may be waiting for company, or a request for a deadline that
        it will miss (`shed_hopeless`)."""
        return max(now, self._planner.wake_at())

    def complete(self, done: StepDone, now: float) -> list[Event]:
        """Take the result of a step; returns the events since the last time.

        Results may come twice (ignored) and out of order (kept until those before have come).

        :raises StepRefused: if the worker refused the step.
        :raises WorkerMismatch: if the result does not fit the step.
        """
        if not len(done.slots) == len(done.tokens) == len(done.finished):
            raise WorkerMismatch(f"step {done.number}: {len(done.slots)} slots, {len(done.tokens)} tokens")
        if self._planned - len(self._flights) < done.number <= self._planned:
            self._early[done.number] = done
        elif done.number > self._planned:
            raise WorkerMismatch(f"result of step {done.number}, but only {self._planned} steps were planned")
        while self._flights and (ready := self._early.pop(self._flights[0].step.number, None)) is not None:
            if ready.error:
                raise StepRefused(f"step {ready.number}: {ready.error}")
            self._apply(self._flights.popleft(), ready, now)
        return self.take_events()

    def steps_ahead(self) -> int:
        """How many steps `skip` may skip now."""
        if self._early or self._events:
            return 0
        return steps_ahead(self._relieved, self._kv, self._running, self._waiting, self._flights)

    def skip(self, steps: int) -> None:
        """As so many results in which every row samples token 0 and none ends, with a plan after each: for simulators.

        Nothing is told to the step-time model. `steps` is at least 1, and at most `steps_ahead()`.
        """
        advance(self._kv, self._running, self._flights, steps, self._planned)
        self._planned += steps

    def take_events(self) -> list[Event]:
        """The events since the last time. After `submit`, `cancel` and `plan`, whose events else wait for a result."""
        events = self._events[:]
        self._events.clear()
        return events

    def _apply(self, flight: Flight, done: StepDone, now: float) -> None:
        self._kv.acknowledge(done.number)
        self._observe(flight, done)
        slots, decodes = flight.step.slots, flight.decodes
        tokens: list[int | None] | list[int] = done.tokens
        finished = done.finished
        if done.slots != slots:
            tokens, finished = flight.align(done)
        rows, begun = flight.rows[:decodes], 0
        if tokens is not done.tokens or any(finished):
            results = enumerate(zip(tokens[:decodes], finished, strict=False))
            for i in [i for i, (token, finish) in results if finish or token is None]:
                self._move_on(rows[begun:i], tokens[begun:i], now)
                self._settle(rows[i], 1, tokens[i], finished[i], True, now)
                begun = i + 1
        self._move_on(rows[begun:] if begun else rows, tokens[begun:decodes], now)
        counts = flight.step.counts
        for i, samples in enumerate(flight.samples, decodes):
            self._settle(flight.rows[i], counts[i], tokens[i], finished[i], samples, now)

    def _move_on(self, rows: list[Row], tokens: Sequence[int | None], now: float) -> None:
        """As `_settle` for one token of each row, where all sampled and the worker ended none: the usual case."""
        register, block = self._kv.register, BLOCK_SIZE
        for row, token in zip(rows, tokens, strict=False):
            if row.stale or token is None:
                self._settle(row, 1, token, Finish.none, True, now)
                continue
            row.in_flight -= 1
            row.computed = computed = row.computed + 1
            row.tokens.append(token)
            if not computed % block and row.blocks:
                register(row)
            if not row.left and not row.in_flight:
                self._end(row, Finish.length, now)

    def _settle(self, row: Row, count: int, token: int | None, finish: int, samples: bool, now: float) -> None:
        """Acknowledge `count` tokens of a row, and the output that it sampled with them."""
        row.in_flight -= count
        if row.stale:
            row.stale -= count
        else:
            row.computed += count
            if row.blocks:
                self._kv.register(row)
        if row.finish not in (Finish.none, Finish.cancelled):
            return  # an overrun
        if token is not None:
            row.tokens.append(token)
            if row.first_token_at is None:
                row.first_token_at = now
                self._events.append(reports.first_token(row, now))
        elif samples and row.place is not Place.over:
            raise WorkerMismatch(f"request {row.request.id}: an output was to be sampled, but none came")
        if row.place is Place.over:
            if not row.in_flight:
                self._events.append(reports.finished(row, now))
        elif finish or not (row.left or row.in_flight):
            self._end(row, Finish(finish or Finish.length), now)

    def _observe(self, flight: Flight, done: StepDone) -> None:
        features = Features(flight.tokens, flight.attended, flight.context, len(flight.rows))
        if self.on_step is not None:
            self.on_step(flight, done, self._step_time.predict(*features))
        if flight.rows and done.duration_s > 0:
            self._step_time.observe(features, done.duration_s)
            self._steps_timed += 1

    # Ends

    def _end(self, row: Row, finish: Finish, now: float) -> None:
        """A row is over."""
        self._retire(row, finish)
        if self._rows.get(row.request.id) is row:
            del self._rows[row.request.id]
        if finish is not Finish.cancelled or not row.in_flight:
            self._events.append(reports.finished(row, now))

    def _retire(self, row: Row, finish: Finish) -> None:
        """Give up everything that a row holds."""
        self._waiting.charge(row)
        if row.place is Place.waiting:
            self._waiting.remove(row)
            row.place = Place.over
        else:
            self._running.leave(row, Place.over)
        self._kv.release(row)
        self._kv.drop_saved(row)
        row.finish = finish
        row.stale = row.in_flight

    # Views

    def load(self, now: float, worker: str) -> WorkerLoad:
        """The state of the worker, for admission and placement."""
        spec, running, ratios = self.spec, self._running, self._step_time.ratios()
        return WorkerLoad(
            worker,
            spec.model,
            spec.blocks,
            spec.blocks - self._kv.device.held,
            running.size,
            running.free_slots,
            spec.tokens_per_step,
            spec.max_context,
            self._step_time.coefficients,
            ratios.p50,
            ratios.p90,
            ratios.p95,
            [reports.request_load(row, now) for row in self._rows.values()],
            spec.device,
            spec.host_blocks,
            spec.block_bytes,
            spec.swap_bytes_per_s,
            self._steps_timed,
            ratios.run_p90,
        )

    def census(self) -> Census:
        """How many wait and run, and the blocks that requests hold. O(1)."""
        return Census(len(self._waiting), len(self._running), self._kv.device.held)

    def block_counts(self) -> dict[str, int]:
        """Device blocks that are `used` by a request or `free` (fenced ones too), those of either in the prefix index
        (`cached`), and `host` blocks that hold a preempted request."""
        device = self._kv.device
        return {
            "used": device.held,
            "free": self.spec.blocks - device.held,
            "cached": len(self._kv.index),
            "host": self._kv.host.held,
        }

    def view(self, now: float) -> CoreView:
        """Who runs, who waits, and whose the memory is, for a person to look at. O(rows)."""
        cost = DeviceCost(self._step_time, tokens_per_step=self.spec.tokens_per_step)
        return view_rows(self._rows.values(), cost, now)

    def requests(self) -> list[Live]:
        """The requests that are not over, in order of arrival."""
        return [
            Live(row.request, row.request.attempt, row.request.gateway, pack_tokens(row.tokens[row.prompt_tokens :]))
            for row in self._rows.values()
        ]

    def drop_all(self) -> list[Live]:
        """Forget everything, as after an attach; returns what is to be handed back. Nothing is reported of it."""
        live = self.requests()
        self._reset()
        return live

    def check_integrity(self) -> None:
        """:raises InvariantBroken: if the books do not agree with each other. O(rows + blocks)."""
        check_integrity(self._kv, self._running, self._waiting, self._rows.values(), self._flights)
