"""Builds a step: who gives way, who decodes, which prompts go on, who starts.

The stages, in this order. All preemption comes before anything is scheduled, so that no victim has tokens in the step
that evicts it, and a step that preempts starts nobody.

1. `_make_way`: a waiting row of a higher class takes the slots and blocks of lower ones, all it needs or nothing.
2. `_grow`: decoding rows that need a block get one; under pressure the last in standing give way, or the row stalls.
3. `_decode`: one token of every decoding row.
4. `_prefill`: partial prompts and waiting rows, the better ranked first, share what is left of the tokens and the time.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf

from policies.chunks import StepTime, largest_chunk
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.events import Event, Preempted, Scheduled
from policies.kv import KvMemory, Start, blocks_for
from policies.order import WaitingQueue, rank
from policies.preemption import choose_kind, choose_set, standing, worst
from policies.rows import Flight, Place, Row
from policies.running import Running, worst_case
from policies.single_flight import SingleFlight
from policies.vocabulary import BLOCK_SIZE, NewRow, WorkerSpec, pack_tokens

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
        self._spec = spec
        self._config = config
        self._step_time = step_time
        self._kv = kv
        self._running = running
        self._waiting = waiting
        self._events = events
        self._single_flight = SingleFlight(config.single_flight_tokens)

    def plan(self, number: int, now: float, *, alone: bool) -> Flight | None:
        """Step `number`; None if there is nothing that a worker should do now. `alone`: no other step is in flight."""
        draft = self._fill(number, now)
        if alone and draft.empty and draft.preempted:
            # Everything that could run gave way at once, without a copy to make: no step was there to wait for.
            draft = Draft(number, self._spec.tokens_per_step)
            self._prefill(draft, now)
        if draft.empty:
            return None
        drops, self._running.drops = self._running.drops, []
        for row in draft.rows:
            row.touched = number
        return draft.seal(drops)

    def _fill(self, number: int, now: float) -> Draft:
        draft = Draft(number, self._spec.tokens_per_step)
        every = self._config.force_preempt_every
        if every and number % every == 0:
            self._force(draft, now)
        if len(self._waiting) and self._config.preempt_for_tier:
            self._make_way(draft, now)
        self._decode(draft, self._grow(draft, now))
        if draft.budget > 0 and (self._running.prefilling or len(self._waiting)):
            self._prefill(draft, now)
        return draft

    # Giving way

    def _make_way(self, draft: Draft, now: float) -> None:
        """Preempt rows of lower classes for the head of the queue, if that is what it takes and it is enough."""
        running, kv, config = self._running, self._kv, self._config
        head = self._waiting.head(now)
        if head is None or head[0].in_flight:
            return
        row = head[0]
        if all(other.tier <= row.tier for other in running) or not self._may_reserve(row):
            return
        start = kv.look(row)
        slots = 1 - running.free_slots - len(running.draining)
        blocks = start.cost + self._reserve() - kv.supply - self._draining_blocks()
        if slots <= 0 and blocks <= 0:
            return
        candidates = [
            other
            for other in (*running.decoding, *running.prefilling)
            if draft.number - other.started >= config.min_run_steps
        ]
        victims = choose_set(
            candidates,
            tier=row.tier,
            slots=slots,
            blocks=blocks,
            freed_by={other: kv.freed_by(other) for other in candidates},
            max_preemptions=config.max_preemptions,
        )
        for victim in victims:
            self._preempt(draft, victim, now)

    def _grow(self, draft: Draft, now: float) -> list[Row]:
        """Give a block to the decoding rows that need one; returns the rows that have room for their next token."""
        running, device = self._running, self._kv.device
        needy = [row for row in running.decoding if row.computed + row.in_flight >= row.room]
        if not needy:
            return running.decoding
        if len(needy) > device.free:
            needy = self._relieve(draft, needy, now)
        stalled = False
        for row in needy:
            if row.place is not Place.decoding:
                continue
            if device.free:
                draft.grown.append((row.slot, self._kv.grow(row)))
            else:
                stalled = True
        if not stalled:
            return running.decoding
        return [row for row in running.decoding if row.computed + row.in_flight < row.room]

    def _relieve(self, draft: Draft, needy: list[Row], now: float) -> list[Row]:
        """Blocks are short: preempt from the last in standing. Returns the rows in need, the first in standing first.

        Blocks that are fenced, or whose row is about to end, count as supply: waiting a step for them is cheaper than a
        preemption, and evicting more because they cannot be handed out yet would never end.
        """
        running, kv, limit = self._running, self._kv, self._config.max_preemptions
        supply = kv.supply + self._draining_blocks()
        needy.sort(key=lambda row: (not running.immune(row), standing(row)))
        for row in needy:
            if row.place is not Place.decoding:
                continue  # gave way meanwhile
            while supply <= 0:
                victim = worst((*running.decoding, *running.prefilling), max_preemptions=limit)
                if victim is None or victim is row:
                    break
                supply += kv.freed_by(victim)
                self._preempt(draft, victim, now)
            supply -= 1
        return needy

    def _force(self, draft: Draft, now: float) -> None:
        """Debug: preempt one row, a different one each time."""
        rows = [row for row in (*self._running.decoding, *self._running.prefilling) if not self._running.immune(row)]
        if rows:
            self._preempt(draft, rows[draft.number // self._config.force_preempt_every % len(rows)], now)

    def _preempt(self, draft: Draft, row: Row, now: float) -> None:
        """Take a row's slot and blocks, and queue it again."""
        kv, spec = self._kv, self._spec
        tokens, held = row.position, len(row.blocks)
        shared = 0
        while shared < held and kv.device.refs[row.blocks[shared]] > 1:
            shared += 1
        kind = choose_kind(
            mode=self._config.preemption,
            tokens=tokens,
            resident=min(tokens, shared * BLOCK_SIZE),
            blocks=blocks_for(tokens),
            host_free=kv.host.free,
            block_bytes=spec.block_bytes,
            swap_bytes_per_s=spec.swap_bytes_per_s,
            step_time=self._step_time,
        )
        self._running.leave(row, Place.waiting)
        if kind == "swap":
            draft.swap_out += kv.swap_out(row, draft.number)
        else:
            kv.release(row)
            row.computed = 0
            row.stale = row.in_flight
        row.preemptions += 1
        draft.preempted = True
        self._waiting.push(row, now)
        request = row.request
        lost = tokens if kind == "recompute" else 0
        self._events.append(Preempted(request.id, request.attempt, request.tenant, kind, lost, held, now))

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
        limit_s = self._pace_s()
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
        if row.in_flight or not running.free_slots or not self._may_reserve(row):
            return False
        if draft.new and draft.new_tokens + len(row.tokens) > self._config.new_tokens_per_step:
            return False
        start = kv.look(row)
        if self._single_flight.wait(row, start):
            self._waiting.set_aside(row)
            return True
        if start.cost + self._reserve() > kv.device.free:
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
            self._first_start(row, start, draft.number, now)
        self._give(draft, row, count)
        return True

    def _first_start(self, row: Row, start: Start, number: int, now: float) -> None:
        request = row.request
        row.first_scheduled_at = now
        row.cached_tokens = start.computed
        self._events.append(
            Scheduled(
                request.id,
                request.attempt,
                request.tenant,
                request.gateway,
                row.queued_at,
                now,
                start.computed,
                number,
            )
        )

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

    def _pace_s(self) -> float:
        """The tightest pace that a step must keep: inf if none."""
        if not self._config.time_budget:
            return inf
        return min((row.tpot_s for row in self._running.decoding if row.tpot_s is not None), default=inf)

    # Room

    def _reserve(self) -> int:
        """Blocks that a start leaves free, so that it is not preempted at once: a block for each running row, and the
        watermark. None if nobody runs, or a request as large as the pool could never start."""
        running = len(self._running)
        return running + ceil(self._config.watermark * self._spec.blocks) if running else 0

    def _may_reserve(self, row: Row) -> bool:
        """Whether the worst case of an immune row fits beside those of the others."""
        if not self._running.immune(row):
            return True
        return self._running.reserved + worst_case(row) <= self._spec.blocks

    def _draining_blocks(self) -> int:
        return sum(self._kv.freed_by(row) for row in self._running.draining)


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
