"""Builds a step: who decodes, which prompts go on, who starts.

In this order:

1. Who gives way (`policies.pressure`): a waiting row of a higher class takes the room of lower ones; decoding rows that
   need a block get one, if need be from the last in standing. A step that preempts starts nobody.
2. One token of every decoding row that has room.
3. Partial prompts and waiting rows, the better ranked first, share what is left of the tokens and of the time.
"""

from __future__ import annotations

from collections import deque
from math import inf

from policies.chunks import StepTime, largest_chunk, tightest_pace_s
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.events import Event
from policies.kv import KvMemory
from policies.order import WaitingQueue, rank
from policies.pressure import Pressure
from policies.reports import scheduled
from policies.rows import Flight, Row
from policies.running import Running
from policies.single_flight import SingleFlight
from policies.vocabulary import NewRow, WorkerSpec, pack_tokens

__all__ = ["Planner"]


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
        self._budget = spec.tokens_per_step
        self._config = config
        self._step_time = step_time
        self._kv = kv
        self._running = running
        self._waiting = waiting
        self._events = events
        self._pressure = Pressure(spec, config, step_time, kv=kv, running=running, waiting=waiting, events=events)
        self._single_flight = SingleFlight(config.single_flight_tokens)

    def plan(self, number: int, now: float, *, alone: bool) -> Flight | None:
        """Step `number`; None if there is nothing that a worker should do now. `alone`: no other step is in flight."""
        draft = self._fill(number, now)
        if alone and draft.empty and draft.preempted:
            # Everything that could run gave way at once, without a copy to make: no step was there to wait for.
            draft = Draft(number, self._budget)
            self._prefill(draft, now)
        if draft.empty:
            return None
        drops, self._running.drops = self._running.drops, []
        for row in draft.rows:
            row.touched = number
        return draft.seal(drops)

    def _fill(self, number: int, now: float) -> Draft:
        draft = Draft(number, self._budget)
        every = self._config.force_preempt_every
        if every and number % every == 0:
            self._pressure.force(draft, now)
        if len(self._waiting) and self._config.preempt_for_tier:
            self._pressure.make_way(draft, now)
        self._decode(draft, self._pressure.grow(draft, now))
        if draft.budget > 0 and (self._running.prefilling or len(self._waiting)):
            self._prefill(draft, now)
        return draft

    # Decode

    def _decode(self, draft: Draft, rows: list[Row]) -> None:
        running = self._running
        if not rows:
            return
        draft.add_decodes(rows[:], running.context)
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
        """Partial prompts and waiting rows, in one order, until tokens, time, slots or blocks are used up."""
        running, waiting = self._running, self._waiting
        limit_s = self._limit_s(now)
        may_start = len(waiting) > 0 and not draft.preempted and running.free_slots > 0
        if may_start:
            waiting.settle(running.decoding)
        partial = deque(sorted(running.prefilling, key=lambda row: rank(row, now)))
        while draft.budget > 0:
            head = waiting.head(now) if may_start else None
            if head is not None and (not partial or head[1] < rank(partial[0], now)):
                may_start = self._start(draft, head[0], limit_s, now)
            elif partial:
                row = partial.popleft()
                if count := self._chunk(draft, row.position, row.behind, limit_s):
                    self._give(draft, row, count)
            else:
                break
        waiting.restore(now)

    def _start(self, draft: Draft, row: Row, limit_s: float, now: float) -> bool:
        """Start the head of the queue. False if it must wait, and with it everyone behind it: nobody slips by."""
        running, kv = self._running, self._kv
        if row.in_flight or not running.free_slots or not self._pressure.may_reserve(row):
            return False
        if draft.new and draft.new_tokens + len(row.tokens) > self._config.new_tokens_per_step:
            return False
        start = kv.look(row)
        if self._single_flight.wait(row, start):
            self._waiting.set_aside(row)
            return True
        if start.cost + self._pressure.reserve() > kv.device.free:
            return False
        count = self._chunk(draft, start.computed, len(row.tokens) - start.computed, limit_s)
        if not count:
            return False
        draft.swap_in += kv.start(row, start, draft.number)
        self._waiting.started(row)
        running.enter(row)
        self._single_flight.leads(row, start)
        row.started = draft.number
        draft.new_tokens += len(row.tokens)
        draft.new.append(_new_row(row))
        if row.first_scheduled_at is None:
            row.first_scheduled_at = now
            row.cached_tokens = start.computed
            self._events.append(scheduled(row, draft.number))
        self._give(draft, row, count)
        return True

    def _chunk(self, draft: Draft, position: int, behind: int, limit_s: float) -> int:
        """How many of the `behind` tokens from `position` on this step takes."""
        most = min(behind, draft.budget)
        if limit_s == inf:
            return most
        return largest_chunk(
            self._step_time,
            limit_s=limit_s,
            tokens=draft.tokens,
            attended=draft.attended,
            context=draft.context,
            rows=len(draft.rows),
            position=position,
            most=most,
            least=max(0, self._config.min_chunk - draft.tokens + draft.decodes),
        )

    def _give(self, draft: Draft, row: Row, count: int) -> None:
        """Put `count` tokens of a prefilling row into the step."""
        samples = count == row.behind
        draft.add_chunk(row, count, row.position, samples=samples)
        row.in_flight += count
        if samples:
            row.left -= 1
            self._running.prefilled(row)

    def _limit_s(self, now: float) -> float:
        """The longest step that keeps the pace of every running row: inf if any length does."""
        if self._config.batching != "time-budgeted":
            return inf
        return tightest_pace_s(self._running.decoding, self._step_time, now)


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
