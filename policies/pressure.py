"""Slots and blocks are short: who gives way to whom, before a step is filled.

All preemption of a step happens here, before anything is scheduled in it, so that no victim has tokens in the step that
evicts it. Blocks that are fenced, or whose row is about to end, count as supply: to wait a step for them is cheaper
than a preemption, and to evict more because they cannot be handed out yet would never end.

Rows that wait may keep blocks (a preempted row its head, a delivered one all it came with). They are the supply of last
resort: taken, the last in standing first, before anybody who runs is preempted; for the head of the queue if nobody
runs or if their rows are of a lower class than it. So a row that waits never holds what somebody must have to get on.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest
from math import ceil, inf

from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.events import Event, Preempted, Reclaimed
from policies.giving import Costs, Ends, Link, Offer
from policies.kv import KvMemory
from policies.offload import Offload
from policies.order import WaitingQueue
from policies.preemption import Standing, choose_set
from policies.rows import Place, Row
from policies.running import Running, worst_case
from policies.vocabulary import BLOCK_SIZE, WorkerSpec

__all__ = ["Pressure"]

#: Victims that the hybrid rule prices, the last in standing.
_PRICED = 12


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
        self._kv = kv
        self._running = running
        self._waiting = waiting
        self._events = events
        self._watermark = ceil(config.watermark * spec.blocks)
        self._hybrid = config.preemption == "hybrid"
        self._standing: Callable[[Row], Standing] = waiting.standing  # who is protected from whom
        self._link = Link(spec)
        self._costs = Costs(spec, step_time, kv=kv, running=running, link=self._link)
        self._offload = None
        if spec.host_blocks and spec.swap_bytes_per_s > 0 and config.max_preemptions:
            self._offload = Offload(
                config.offload_share,
                kv=kv,
                running=running,
                costs=self._costs,
                link=self._link,
                standing=self._standing,
                tail_first=config.preemption in ("tail", "hybrid"),
            )

    def offload(self, share: float) -> None:
        """From now on use so much of the link to the host for copies ahead of need."""
        if self._offload is not None:
            self._offload.share = share

    def reserve(self) -> int:
        """Blocks that a start leaves free, so that it is not preempted at once: one for each running row, and the
        watermark. None while nobody runs, or a request as large as the pool could never start."""
        running = len(self._running)
        return running + self._watermark if running else 0

    def may_reserve(self, row: Row) -> bool:
        """Whether the worst case of an immune row fits beside those of the others."""
        if not self._running.immune(row):
            return True
        return self._running.reserved + self._kv.transit.held + worst_case(row) <= self._spec.blocks

    def may_expect(self, blocks: int) -> bool:
        """Whether so many blocks may be held for a request that is not here yet: as if it started."""
        if blocks + self.reserve() > self._kv.device.free:
            return False
        return self._running.reserved + self._kv.transit.held + blocks <= self._spec.blocks

    # For the head of the queue

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
        blocks = self._missing(row)
        if kv.keepers:
            blocks -= sum(kv.freed_by(keeper) for keeper in self._keepers_below(row))
        if slots <= 0 and blocks <= 0:
            return
        quantum = self._config.min_run_steps
        candidates = [
            other
            for other in (*running.decoding, *running.prefilling)
            if draft.number - other.started >= quantum and (self._config.preempt_promised or not _promised(other))
        ]
        missing = max(0, blocks)
        ends = self._costs.ends() if self._hybrid else None
        victims = choose_set(
            candidates,
            tier=row.tier,
            slots=slots,
            blocks=blocks,
            freed_by={other: kv.freed_by(other) for other in candidates},
            max_preemptions=self._config.max_preemptions,
            standing=self._standing if ends is None else lambda other: self._reluctance(other, missing, ends, now),
        )
        for victim in victims:
            missing -= self.preempt(draft, victim, max(0, missing), now)

    def _clear_for_head(self, draft: Draft, now: float) -> None:
        """Take kept blocks for the head of the queue: of anybody if nobody runs, else of lower classes."""
        kv, head = self._kv, self._waiting.head(now)
        if head is None or head[0].in_flight or not self.may_reserve(head[0]):
            return
        row = head[0]
        alone = not len(self._running)
        keepers = [keeper for keeper in kv.keepers if keeper is not row] if alone else self._keepers_below(row)
        missing = self._missing(row)
        if not (alone or sum(map(kv.freed_by, keepers)) >= missing):
            return
        # Again, as long as anybody keeps any: what two of them share is free when the second gave it up.
        while missing > 0 and keepers:
            for keeper in sorted(keepers, key=self._standing, reverse=True):
                self._reclaim(draft, keeper, missing, now)
                missing = self._missing(row)  # anew: what comes free may be what the head was to share
                if missing <= 0:
                    break
            keepers = [keeper for keeper in keepers if keeper.blocks]

    def _missing(self, row: Row) -> int:
        """Blocks that a waiting row's start takes beyond what is free, or will be."""
        return self._kv.look(row).cost + self.reserve() - self._kv.supply - self._draining_blocks()

    def _keepers_below(self, row: Row) -> list[Row]:
        return [keeper for keeper in self._kv.keepers if keeper.tier > row.tier]

    # For rows that decode

    def grow(self, draft: Draft, now: float) -> list[Row]:
        """Give a block to the decoding rows that need one; returns the rows that have room for their next token."""
        running, device = self._running, self._kv.device
        if self._kv.keepers and len(self._waiting):
            self._clear_for_head(draft, now)
        if self._offload is not None:
            self._offload.copy(draft, now)
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
        """Blocks are short: somebody behind a row in need gives way to it, or, if nobody is, it stalls. Sorts `needy`,
        the first in standing first."""
        running, kv = self._running, self._kv
        supply = kv.supply + self._draining_blocks()
        needy.sort(key=lambda row: (not running.immune(row), self._standing(row)))
        if supply < len(needy) and self._hybrid and self._better_to_wait(needy, supply, now):
            return
        for done, row in enumerate(needy):
            if row.place is not Place.decoding:
                continue  # gave way meanwhile
            while supply <= 0:
                short = len(needy) - done - supply
                keeper = max(kv.keepers, key=lambda row: (kv.freed_by(row) > 0, self._standing(row)), default=None)
                if keeper is not None:
                    supply += self._reclaim(draft, keeper, short, now)
                    continue
                victim = self._victim(row, short, now)
                if victim is None:
                    return
                short -= sum(1 for other in needy[done + 1 :] if other is victim)
                supply += self.preempt(draft, victim, short, now)
            supply -= 1

    def _victim(self, needer: Row, short: int, now: float) -> Row | None:
        """Who gives way to a row in need of a block; None: nobody stands behind it."""
        behind = self._behind(needer)
        if not self._hybrid:
            return max(behind, key=self._standing, default=None)
        ends = self._costs.ends()
        return max(behind, key=lambda row: self._reluctance(row, short, ends, now), default=None)

    def _behind(self, needer: Row) -> list[Row]:
        """Who may give way to a row; where costs decide, as many of the last in standing as are worth pricing."""
        running, protected = self._running, self._standing(needer)
        behind = [
            row
            for row in (*running.decoding, *running.prefilling)
            if not running.immune(row) and (running.immune(needer) or self._standing(row) > protected)
        ]
        return nlargest(_PRICED, behind, key=self._standing) if self._hybrid else behind

    def _reluctance(self, row: Row, short: int, ends: Ends, now: float) -> tuple[float, ...]:
        """Orders rows as victims of the hybrid rule, the largest gives way first: the lowest class, in it whoever frees
        anything, of those who keeps his promise nevertheless, of those the cheapest for a block, then the latest."""
        offer = self._offer(row, short, now)
        misses, cost_s = self._costs.badness(row, offer, ends=ends, now=now)
        return (self._standing(row)[0], offer.freed > 0, not misses, -cost_s, row.sequence)

    def _better_to_wait(self, needy: list[Row], supply: int, now: float) -> bool:
        """Whether enough rows end so soon that who has no block yet rather stalls. `needy` is in order of standing."""
        costs, kv, short = self._costs, self._kv, len(needy) - supply
        wait_s = costs.release_s(short, but=needy)
        if wait_s == inf or any(0 <= costs.slack_s(row, now) < wait_s for row in needy[supply:]):
            return False
        rows = list(kv.keepers) or self._behind(needy[0])
        offers = [self._offer(row, short, now) for row in rows]
        cheapest = min((offer.cost_s for offer in offers if offer.freed), default=inf)
        return short * wait_s <= wait_s + cheapest  # a victim too is away until then

    # Giving up

    def force(self, draft: Draft, now: float) -> None:
        """Debug: preempt one row, a different one each time."""
        running, every = self._running, self._config.force_preempt_every
        rows = [row for row in (*running.decoding, *running.prefilling) if not running.immune(row)]
        if rows:
            row = rows[draft.number // every % len(rows)]
            self.preempt(draft, row, 1 + draft.number // every % len(row.blocks), now)

    def preempt(self, draft: Draft, row: Row, need: int, now: float) -> int:
        """Take a row's slot, and `need` of its blocks or all, as the mode says; queue it again. Returns the blocks
        that come free."""
        tokens, request = row.position, row.request
        offer = self._offer(row, need, now)
        self._running.leave(row, Place.waiting)
        freed, given, swapped = self._take(draft, row, tokens, offer, now)
        row.preemptions += 1
        draft.preempted = True
        self._waiting.push(row, now)
        kept = len(row.blocks)
        kind = "swap" if row.saved > kept * BLOCK_SIZE else "tail" if kept else "recompute"
        lost = tokens - row.saved
        self._events.append(
            Preempted(request.id, request.attempt, request.tenant, kind, lost, given, now, swapped, kept)
        )
        return freed

    def _reclaim(self, draft: Draft, row: Row, need: int, now: float) -> int:
        """Take `need` of the blocks that a waiting row keeps, or all; returns those that come free. May be none, where
        several rows keep the same ones, until the last of them gave them up."""
        tokens, request = row.saved, row.request
        offer = self._offer(row, need, now)
        if not offer.freed:
            offer = offer._replace(keep=0)
        freed, given, swapped = self._take(draft, row, tokens, offer, now)
        lost = tokens - row.saved
        self._events.append(Reclaimed(request.id, request.attempt, request.tenant, lost, given, swapped, now))
        return freed

    def _take(self, draft: Draft, row: Row, tokens: int, offer: Offer, now: float) -> tuple[int, int, int]:
        """(Blocks that come free, that the row gave up, that are copied)."""
        kv, held, freed = self._kv, len(row.blocks), self._kv.freed_by(row)
        out = kv.uncopied(row, tokens, keep=offer.keep)
        copy = offer.copy and kv.make_host_room(out, but=row)
        copies = kv.give_up(row, tokens, draft.number, keep=offer.keep, copy=copy)
        draft.swap_out += copies
        self._link.carry(len(copies), now)
        return freed - kv.freed_by(row), held - len(row.blocks), len(copies)

    def _offer(self, row: Row, need: int, now: float) -> Offer:
        """How a row would give up `need` blocks, or all it can."""
        kv, mode = self._kv, self._config.preemption
        waits = row.place is Place.waiting
        if mode == "hybrid":
            needers = min(need, len(self._running.decoding))
            return self._costs.offer(row, need, ahead=self._ahead(), needers=needers, now=now)
        if mode == "tail" or waits:
            return Offer(*kv.tail(row, need), mode == "swap", 0.0, 0.0)
        return Offer(0, kv.freed_by(row), mode == "swap", 0.0, 0.0)

    def _ahead(self) -> int:
        """Blocks that decoding rows come to need while what is copied out now is still on its way."""
        steps = self._config.steps_in_flight + 1
        return ceil(len(self._running.decoding) * steps / BLOCK_SIZE)

    def _draining_blocks(self) -> int:
        return sum(self._kv.freed_by(row) for row in self._running.draining)


def _promised(row: Row) -> bool:
    """Whether giving way could break what a row was promised: its pace, or a first token that is still to come."""
    return row.tpot_s is not None or (row.first_token_at is None and row.deadline < inf)
