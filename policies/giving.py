"""What it costs that a row gives blocks away, and the cheapest way for it: computing them again, a copy, or waiting.

The rule of the hybrid preemption. Each way is priced in seconds of rows: what the device loses is lost by every row
that runs, what only delays the victim counts once.

- **Computing again** takes what a step with these tokens takes over one that decodes alone, so that a step below its
  memory floor absorbs them for nothing (vLLM's reason to recompute; here it is counted).
- **A copy** occupies the link both ways and waits in its queue; it steals a share of the device's memory bandwidth, a
  step waits for what it needs of it beyond its own time, and those in need wait until it is out. What the host has
  already is not copied again.
- Either takes the tail that is needed and no more: the head stays where it is while the row waits, and is taken, the
  last in standing first, before anybody else is preempted. So a whole request is given up in small parts if at all.
- **Waiting** costs the rows in need the time until enough others end within the blocks that they have.

A victim whose promise would not survive its return counts as a miss, and is spared while another's would. One whose
promise is broken already has none to lose. How long a victim is away is the time until those who run on have given back
what it takes to return (an order statistic of what they have left).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import ceil, inf
from typing import NamedTuple

from policies.chunks import StepTime
from policies.kv import KvMemory, blocks_for
from policies.rows import Place, Row
from policies.running import Running, worst_case
from policies.vocabulary import BLOCK_SIZE, WorkerSpec

__all__ = ["Costs", "Ends", "Link", "Offer", "to_come"]

#: Share of a copy's time by which it slows the steps beside it: both read and write device memory.
STOLEN = 0.1


class Link:
    """The way between device and host, as far as the copies that were planned occupy it."""

    __slots__ = ("_busy_until", "block_s")

    def __init__(self, spec: WorkerSpec) -> None:
        known = spec.swap_bytes_per_s > 0
        self.block_s = spec.block_bytes / spec.swap_bytes_per_s if known else inf  # one way
        self._busy_until = 0.0

    def queue_s(self, now: float) -> float:
        """How long a copy that is planned now waits for those before it."""
        return max(0.0, self._busy_until - now)

    def carry(self, blocks: int, now: float) -> None:
        """So many blocks are on their way, out or in."""
        if blocks and self.block_s < inf:
            self._busy_until = max(now, self._busy_until) + blocks * self.block_s


class Offer(NamedTuple):
    """One way for a row to give blocks away."""

    keep: int  # device blocks that it keeps
    freed: int
    copy: bool  # the rest goes to the host; else it is computed again
    cost_s: float  # seconds of rows
    delay_s: float  # of the row itself, when it comes back


class Ends(NamedTuple):
    """When rows are expected to end, the soonest first."""

    at_s: list[float]  # from now
    blocks: list[float]  # that all up to this one have given back by then


class Costs:
    """Prices the ways in which rows of one worker give blocks away."""

    def __init__(self, spec: WorkerSpec, step_time: StepTime, *, kv: KvMemory, running: Running, link: Link) -> None:
        self._spec = spec
        self._step_time = step_time
        self._kv = kv
        self._running = running
        self._link = link

    def step_s(self) -> float:
        """A step of the decoding rows alone."""
        rows = max(1, len(self._running.decoding))
        return self._step_time.predict(rows, 0, self._running.context, rows)

    def offer(self, row: Row, need: int, *, ahead: int = 0, needers: int = 0, now: float) -> Offer:
        """The cheapest of the `ways`."""
        return min(self.ways(row, need, ahead=ahead, needers=needers, now=now), key=lambda way: way.cost_s)

    def ways(self, row: Row, need: int, *, ahead: int = 0, needers: int = 0, now: float) -> list[Offer]:
        """How a row can free `need` blocks, or all it can: computing again, and a copy where there is a host with room.

        A copy frees `ahead` more at once: what it frees comes a few steps late, so it is to last. `needers` rows wait
        for the blocks meanwhile.
        """
        tokens = row.saved if row.place is Place.waiting else row.position
        keep, freed = self._kv.tail(row, need)
        again = self._computed_again(row, tokens, keep, freed)
        if self._spec.swap_bytes_per_s <= 0:
            return [again]
        if ahead:
            keep, freed = self._kv.tail(row, need + ahead)
        copied = self._copied(row, tokens, keep, freed, needers, now)
        return [again] if copied is None else [again, copied]

    def _computed_again(self, row: Row, tokens: int, keep: int, freed: int) -> Offer:
        left = self._kv.covered(row, tokens, keep=min(keep, blocks_for(tokens)))
        if left < tokens:
            left = min(left, row.computed)  # see KvMemory.give_up
        block_s, rows, context = self._link.block_s, len(self._running.decoding), self._running.context
        back = max(0, blocks_for(left) - keep)  # blocks that come back from copies
        stolen_s = delay_s = 0.0
        if back:
            stolen_s, delay_s = self._stolen_s(back * block_s), back * block_s
        if lost := tokens - left:
            predict = self._step_time.predict
            steps = ceil(lost / max(1, self._spec.tokens_per_step - rows))
            chunk = lost / steps
            alone_s = predict(max(1, rows), 0, context, max(1, rows))
            with_s = predict(rows + chunk, chunk * (left + lost / 2), context, rows + 1)
            again_s = steps * max(0.0, with_s - alone_s)
            stolen_s += again_s
            delay_s += (steps - 1) * alone_s + again_s
        return Offer(keep, freed, False, max(1, len(self._running)) * stolen_s + delay_s, delay_s)

    def _copied(self, row: Row, tokens: int, keep: int, freed: int, needers: int, now: float) -> Offer | None:
        """None if the host has no room."""
        end, out = min(blocks_for(tokens), len(row.blocks)), self._kv.uncopied(row, tokens, keep=keep)
        if out > self._kv.host_room(but=row):
            return None
        block_s, queue_s = self._link.block_s, self._link.queue_s(now) if out else 0.0
        out_s, in_s = out * block_s, max(0, end - keep) * block_s
        stolen_s = self._stolen_s(out_s) + self._stolen_s(in_s)
        delay_s = in_s + queue_s
        cost_s = max(1, len(self._running)) * stolen_s + delay_s + needers * (out_s + queue_s)
        return Offer(keep, freed, True, cost_s, delay_s)

    def _stolen_s(self, copy_s: float) -> float:
        """What a copy takes from the rows that run: it slows the steps beside it, and they wait for its end."""
        return max(STOLEN * copy_s, copy_s - self.step_s())

    def badness(self, row: Row, offer: Offer, *, ends: Ends, now: float) -> tuple[bool, float]:
        """Orders victims of a class: whether its promise would be missed, then its cost for each block.

        The time that a victim is away costs the more, the larger the share of its slack that it consumes.
        """
        slack_s = self.slack_s(row, now)
        gone_s = self.away_s(row, ends) + offer.delay_s
        consumed = gone_s / slack_s if slack_s > 0 else 0.0
        return 0 < slack_s < gone_s, (offer.cost_s + gone_s * consumed * consumed) / max(1, offer.freed)

    def slack_s(self, row: Row, now: float) -> float:
        """How long a running row could rest and still keep its promise: inf without one, negative if it is lost.

        A pace is promised on average, so what a row gains on it until it ends counts.
        """
        if row.first_token_at is None:
            if row.deadline == inf:
                return inf
            behind = max(1, row.behind)
            return row.deadline - now - self._step_time.predict(behind, behind * (row.position + behind / 2), 0, 1)
        if row.first_token_at > row.deadline:
            return -inf
        if row.tpot_s is None:
            return inf
        return row.lead_s(now) + to_come(row) * (row.tpot_s - self.step_s())

    def ends(self) -> Ends:
        """Of the rows that decode. O(n log n)."""
        step_s = self.step_s()
        left = sorted((to_come(row), len(row.blocks)) for row in self._running.decoding)
        given = accumulate(blocks + outputs / BLOCK_SIZE for outputs, blocks in left)
        return Ends([outputs * step_s for outputs, _ in left], list(given))

    def away_s(self, row: Row, ends: Ends) -> float:
        """How long a victim will be away: until there are blocks for all it has, or, if it returns immune, may need."""
        running = self._running
        immune = row.preemptions + 1 >= running.max_preemptions
        need = (worst_case(row) if immune else blocks_for(row.position)) + len(running) - self._kv.supply
        if need <= 0 or not ends.at_s:
            return 0.0
        return ends.at_s[min(bisect_left(ends.blocks, need), len(ends.at_s) - 1)]

    def release_s(self, blocks: int, *, but: Iterable[Row] = ()) -> float:
        """The time until `blocks` blocks are free because rows end, of all `but` some; inf if that is not in sight.

        In sight are those that end within the blocks that they have: they do not need what others wait for.
        """
        kv, stalled, ends = self._kv, set(but), []
        for row in self._running.decoding:
            left = row.outputs_left
            if left <= row.room - row.position and row not in stalled:
                ends.append((left, row))
        ends.sort(key=lambda end: end[0])
        for left, row in ends:
            blocks -= kv.freed_by(row)
            if blocks <= 0:
                return left * self.step_s()
        return inf


def to_come(row: Row) -> int:
    """Outputs that are expected of a running row: what was foretold; else, or beyond that, as many again as it has had.

    That is the rule for lengths without a scale (their tails are heavy, so what has gone on for long goes on for long);
    admission without a history foretells nothing.
    """
    foretold = row.request.expected_outputs - row.request.max_tokens + row.left
    return min(row.left, foretold if foretold > 0 else max(BLOCK_SIZE, row.generated - row.seen))
