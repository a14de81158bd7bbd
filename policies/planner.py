"""Builds a step: who decodes, which prompts go on, who starts.

In this order:

1. Who gives way (`policies.pressure`): a waiting row of a higher class takes the room of lower ones; decoding rows that
   need a block get one, if need be from the last in standing. A step that preempts starts nobody.
2. One token of every decoding row that has room and takes part (`policies.turns`).
3. Partial prompts and waiting rows share what is left of the tokens and of the time, as `policies.batching` says, in
   the order of `policies.order`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from math import inf

from policies.batching import batching
from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.events import Event
from policies.kv import KvMemory
from policies.order import WaitingQueue
from policies.pressure import Pressure
from policies.reports import scheduled
from policies.rows import Flight, Row
from policies.running import Running
from policies.single_flight import SingleFlight
from policies.turns import FlexYields, best_ranked, outranked
from policies.vocabulary import NewRow, Tier, WorkerSpec, pack_tokens

__all__ = ["Planner"]


class _Start(Enum):
    started = auto()
    passed = auto()  # set aside: look behind it
    full = auto()  # the step has no room for it
    blocked = auto()  # no slot or blocks: it and everyone behind it must wait


class Planner:
    """Plans steps over the waiting and running rows and their KV, and moves rows between them."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: SchedulerConfig,
        step_time: StepTime,
        *,
        kv: KvMemory,
        running: Running,
        waiting: WaitingQueue,
        events: list[Event],
    ) -> None:
        self._config = config
        self._batching = batching(config, spec, step_time, slots=running.size)
        self._flex = FlexYields(step_time) if config.flex_yields else None
        self._step_time = step_time
        self._kv = kv
        self._running = running
        self._waiting = waiting
        self._events = events
        self._pressure = Pressure(spec, config, step_time, kv=kv, running=running, waiting=waiting, events=events)
        self._single_flight = SingleFlight(config.single_flight_tokens)
        self._flex_below = inf  # rows
        self._tried_at = -inf
        self.relieve(config)

    def relieve(self, config: SchedulerConfig) -> None:
        """From now on go by what `policies.overload` changes in the options."""
        self._flex_below = inf if config.flex_slots >= 1 else config.flex_slots * self._running.size
        self._pressure.offload(config.offload_share)

    def wake_at(self) -> float:
        """The instant from which a step may be planned although nothing happened since none could be; inf: never. What
        was due when it was last tried is not what it waits for."""
        instants = (self._batching.wake_at(self._running, self._waiting), self._waiting.hopeless_at())
        return min((at for at in instants if at > self._tried_at), default=inf)

    def may_expect(self, blocks: int) -> bool:
        """Whether so many blocks may be held for a request that is not here yet."""
        return self._pressure.may_expect(blocks)

    def plan(self, number: int, now: float, *, alone: bool) -> Flight | None:
        """Step `number`; None if there is nothing that a worker should do now. `alone`: no other step is in flight."""
        self._tried_at = now
        draft = self._fill(number, now)
        if alone and draft.empty and draft.preempted:
            # Everything that could run gave way at once, without a copy to make: no step was there to wait for.
            draft = Draft(number, self._batching.tokens)
            self._prefill(draft, now)
        if draft.empty:
            return None
        drops, self._running.drops = self._running.drops, []
        for row in draft.rows:
            row.touched = number
        if self._waiting.preemptive:
            seconds = self._step_time.predict(draft.tokens, draft.attended, draft.context, len(draft.rows))
            self._waiting.ran(draft.rows, seconds, now)
        return draft.seal(drops)

    def _fill(self, number: int, now: float) -> Draft:
        draft = Draft(number, self._batching.tokens)
        every = self._config.force_preempt_every
        if every and number % every == 0:
            self._pressure.force(draft, now)
        if len(self._waiting) and self._config.preempt_for_tier:
            self._pressure.make_way(draft, now)
        if len(self._waiting) and self._waiting.preemptive:
            self._give_way(draft, now)
        rows = self._pressure.grow(draft, now)
        taking = self._taking_part(rows, now) if self._flex is not None or self._waiting.preemptive else rows
        self._decode(draft, taking)
        if draft.budget > 0 and (self._running.prefilling or len(self._waiting)):
            self._prefill(draft, now)
        if taking is not rows and not draft.rows:
            self._decode(draft, rows[: self._batching.size])  # who they sat out for cannot run
        return draft

    def _give_way(self, draft: Draft, now: float) -> None:
        """Preemptive orders: rows that rank behind the head of the queue give it the slot and blocks that it misses."""
        running, kv, head = self._running, self._kv, self._waiting.head(now)
        if head is None or head[0].in_flight or running.draining or not self._pressure.may_reserve(head[0]):
            return
        quantum = self._config.min_run_steps
        missing = kv.look(head[0]).cost + self._pressure.reserve() - kv.supply
        rows = (*running.decoding, *running.prefilling)
        for row in outranked(
            [row for row in rows if not running.immune(row) and draft.number - row.started >= quantum],
            head=head[0],
            slots=1 - running.free_slots,
            blocks=missing,
            waiting=self._waiting,
            kv=kv,
            now=now,
        ):
            missing -= self._pressure.preempt(draft, row, max(0, missing), now)

    # Decode

    def _taking_part(self, rows: list[Row], now: float) -> list[Row]:
        """Which of these decoding rows are in the step."""
        if self._waiting.preemptive:
            rows = best_ranked(
                rows,
                size=self._batching.size,
                running=self._running,
                waiting=self._waiting,
                kv=self._kv,
                reserve=self._pressure.reserve,
                now=now,
            )
        if self._flex is not None and rows:
            rows = self._flex.choose(rows, self._context(rows), now)
        return rows

    def _context(self, rows: list[Row]) -> int:
        running = self._running
        return running.context if len(rows) == len(running.decoding) else sum(row.position for row in rows)

    def _decode(self, draft: Draft, rows: list[Row]) -> None:
        running = self._running
        if not rows:
            return
        draft.add_decodes(rows[:], self._context(rows))
        last = []
        for row in rows:
            row.in_flight += 1
            row.left -= 1
            if not row.left:
                last.append(row)
        running.context += len(rows)
        if last:
            running.drained(last)

    # Prefill and start

    def _prefill(self, draft: Draft, now: float) -> None:
        """Partial prompts and waiting rows, until tokens, time, places, slots or blocks are used up."""
        running, waiting, batch = self._running, self._waiting, self._batching
        places = batch.begin(draft, running, waiting, now)
        if draft.preempted or not running.free_slots:
            places = 0
        if places and len(waiting):
            waiting.settle(running.decoding)
        partial = deque(waiting.in_turn(running.prefilling, now)) if running.prefilling else deque()
        in_turn = not batch.partial_first or waiting.preemptive
        more = False
        while draft.budget > 0 and len(draft.rows) < batch.size:
            head = waiting.head(now) if len(draft.new) < places and (in_turn or not partial) else None
            if head is not None and (not partial or head[1] < partial[0][0]):
                outcome = self._start(draft, head[0], now)
                more = more or outcome in (_Start.passed, _Start.full)
                if outcome in (_Start.full, _Start.blocked):
                    places = 0
            elif partial:
                row = partial.popleft()[1]
                if count := batch.chunk(draft, row.position, row.behind):
                    self._give(draft, row, count)
            else:
                break
        else:
            more = True
        waiting.restore(now)
        batch.end(len(draft.new), more=more)

    def _start(self, draft: Draft, row: Row, now: float) -> _Start:
        """Start the head of the queue. Nobody behind it slips by, unless it is set aside."""
        running, kv = self._running, self._kv
        if row.in_flight or not running.free_slots or not self._pressure.may_reserve(row):
            return _Start.blocked
        if draft.new and draft.new_tokens + len(row.tokens) > self._config.new_tokens_per_step:
            return _Start.full
        if len(running) >= self._flex_below and row.tier >= Tier.flex:
            self._waiting.set_aside(row)
            return _Start.passed
        start = kv.look(row)
        if self._single_flight.wait(row, start):
            self._waiting.set_aside(row)
            return _Start.passed
        if start.cost + self._pressure.reserve() > kv.device.free:
            return _Start.blocked
        count = self._batching.chunk(draft, start.computed, len(row.tokens) - start.computed)
        if not count:
            return _Start.full
        draft.swap_in += kv.start(row, start, draft.number)
        self._waiting.started(row)
        running.enter(row)
        self._single_flight.leads(row)
        row.started = draft.number
        draft.new_tokens += len(row.tokens)
        draft.new.append(_new_row(row))
        if row.first_scheduled_at is None:
            row.first_scheduled_at = now
            row.cached_tokens = start.computed
            self._events.append(scheduled(row, draft.number))
        self._give(draft, row, count)
        return _Start.started

    def _give(self, draft: Draft, row: Row, count: int) -> None:
        """Put `count` tokens of a prefilling row into the step."""
        samples = count == row.behind
        draft.add_chunk(row, count, row.position, samples=samples)
        row.in_flight += count
        if samples:
            row.left -= 1
            self._running.prefilled(row)


def _new_row(row: Row) -> NewRow:
    request = row.request
    return NewRow(
        row.slot,
        request.id,
        request.attempt,
        request.gateway,
        pack_tokens(row.tokens),
        row.prompt_tokens,
        request.max_tokens,
        request.sampling,
        row.blocks[:],
        row.computed,
        request.traceparent,
    )
