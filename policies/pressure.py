"""Slots and blocks are short: who gives way to whom, before a step is filled.

All preemption of a step happens here, before anything is scheduled in it, so that no victim has tokens in the step that
evicts it. Blocks that are fenced, or whose row is about to end, count as supply: to wait a step for them is cheaper
than a preemption, and to evict more because they cannot be handed out yet would never end.
"""

from __future__ import annotations

from math import ceil

from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.events import Event, Preempted
from policies.kv import KvMemory, blocks_for
from policies.order import WaitingQueue
from policies.preemption import choose_kind, choose_set, standing, worst
from policies.rows import Place, Row
from policies.running import Running, worst_case
from policies.vocabulary import BLOCK_SIZE, WorkerSpec

__all__ = ["Pressure"]


class Pressure:
    """Moves rows from running to waiting, and gives decoding rows the blocks that they grow into."""

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
        self._watermark = ceil(config.watermark * spec.blocks)

    def reserve(self) -> int:
        """Blocks that a start leaves free, so that it is not preempted at once: one for each running row, and the
        watermark. None while nobody runs, or a request as large as the pool could never start."""
        running = len(self._running)
        return running + self._watermark if running else 0

    def may_reserve(self, row: Row) -> bool:
        """Whether the worst case of an immune row fits beside those of the others."""
        if not self._running.immune(row):
            return True
        return self._running.reserved + worst_case(row) <= self._spec.blocks

    def make_way(self, draft: Draft, now: float) -> None:
        """Preempt rows of lower classes for the head of the queue, if nothing less helps and it is enough."""
        running, kv = self._running, self._kv
        head = self._waiting.head(now)
        if head is None or head[0].in_flight:
            return
        row = head[0]
        if all(tier <= row.tier for tier in running.tiers) or not self.may_reserve(row):
            return
        slots = 1 - running.free_slots - len(running.draining)
        blocks = kv.look(row).cost + self.reserve() - kv.supply - self._draining_blocks()
        if slots <= 0 and blocks <= 0:
            return
        quantum = self._config.min_run_steps
        candidates = [
            other for other in (*running.decoding, *running.prefilling) if draft.number - other.started >= quantum
        ]
        victims = choose_set(
            candidates,
            tier=row.tier,
            slots=slots,
            blocks=blocks,
            freed_by={other: kv.freed_by(other) for other in candidates},
            max_preemptions=self._config.max_preemptions,
        )
        for victim in victims:
            self.preempt(draft, victim, now)

    def grow(self, draft: Draft, now: float) -> list[Row]:
        """Give a block to the decoding rows that need one; returns the rows that have room for their next token."""
        running, device = self._running, self._kv.device
        needy = [row for row in running.decoding if row.computed + row.in_flight >= row.room]
        if not needy:
            return running.decoding
        if len(needy) > device.free:
            self._relieve(draft, needy, now)
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

    def _relieve(self, draft: Draft, needy: list[Row], now: float) -> None:
        """Blocks are short: the last in standing gives way to a row in need, which may be the last itself; then it
        stalls. Sorts `needy`, the first in standing first."""
        running, kv, limit = self._running, self._kv, self._config.max_preemptions
        supply = kv.supply + self._draining_blocks()
        needy.sort(key=lambda row: (not running.immune(row), standing(row)))
        for row in needy:
            if row.place is not Place.decoding:
                continue  # gave way meanwhile
            while supply <= 0:
                victim = worst((*running.decoding, *running.prefilling), max_preemptions=limit)
                if victim is None or victim is row:
                    return
                supply += kv.freed_by(victim)
                self.preempt(draft, victim, now)
            supply -= 1

    def force(self, draft: Draft, now: float) -> None:
        """Debug: preempt one row, a different one each time."""
        running, every = self._running, self._config.force_preempt_every
        rows = [row for row in (*running.decoding, *running.prefilling) if not running.immune(row)]
        if rows:
            self.preempt(draft, rows[draft.number // every % len(rows)], now)

    def preempt(self, draft: Draft, row: Row, now: float) -> None:
        """Take a row's slot and blocks, and queue it again."""
        kv = self._kv
        tokens, held = row.position, len(row.blocks)
        kind = self._kind(row, tokens)
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

    def _kind(self, row: Row, tokens: int) -> str:
        refs, shared = self._kv.device.refs, 0
        while shared < len(row.blocks) and refs[row.blocks[shared]] > 1:
            shared += 1
        return choose_kind(
            mode=self._config.preemption,
            tokens=tokens,
            resident=min(tokens, shared * BLOCK_SIZE),
            blocks=blocks_for(tokens),
            host_free=self._kv.host.free,
            block_bytes=self._spec.block_bytes,
            swap_bytes_per_s=self._spec.swap_bytes_per_s,
            step_time=self._step_time,
        )

    def _draining_blocks(self) -> int:
        return sum(self._kv.freed_by(row) for row in self._running.draining)
