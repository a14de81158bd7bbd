"""Which of the decoding rows take part in a step: the others sit it out, with their slots and blocks.

A worker keeps a slot as it is while no step names it, and the last output of its row is the input of the next step that
does, so a row may miss any number of steps, also while results are in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from policies.chunks import StepTime, tightest_pace_s
from policies.kv import KvMemory
from policies.order import WaitingQueue
from policies.rows import Row
from policies.running import Running
from policies.vocabulary import Tier

__all__ = ["FlexYields", "best_ranked", "outranked"]

#: Steps in a row that one row sits out at most for the pace of others: as many as a lead is lent over.
MOST_STEPS = 32


class FlexYields:
    """Rows without a contract sit out steps that would break the tightest pace of those with one.

    As many take part as the pace has room for, those who sat out longest first, and of n at least n / 32 (rounded up),
    so that their cost is spread over the steps; a row that has sat out 32 steps takes part whatever it costs. So a flex
    row runs at a thirty-second of the steps at worst, and never stops.
    """

    def __init__(self, step_time: StepTime) -> None:
        self._step_time = step_time
        self._sat: dict[Row, int] = {}  # steps in a row, of those who sat out the last

    def choose(self, rows: list[Row], context: int, now: float) -> list[Row]:
        """Those of `rows`, whose contexts are `context` in sum, that decode in the step."""
        limit_s = tightest_pace_s(rows, self._step_time, now)
        predict = self._step_time.predict
        if limit_s == inf or predict(len(rows), 0.0, context, len(rows)) <= limit_s:
            self._sat = {}
            return rows
        sat = self._sat
        flex = sorted(
            (row for row in rows if row.tpot_s is None and row.tier >= Tier.flex), key=lambda r: -sat.get(r, 0)
        )
        count = len(rows) - len(flex)
        held = context - sum(row.position for row in flex)
        least = -(-len(flex) // MOST_STEPS)
        taken = 0
        for row in flex:
            count, held = count + 1, held + row.position
            due = taken < least or sat.get(row, 0) >= MOST_STEPS
            if not due and predict(count, 0.0, held, count) > limit_s:
                break
            taken += 1
        self._sat = {row: sat.get(row, 0) + 1 for row in flex[taken:]}
        return [row for row in rows if row not in self._sat] if self._sat else rows


def best_ranked(
    rows: list[Row],
    *,
    size: int,
    running: Running,
    waiting: WaitingQueue,
    kv: KvMemory,
    reserve: Callable[[], int],
    now: float,
) -> list[Row]:
    """Under a preemptive order: those of the decoding `rows` that are among the `size` best of all who could run now,
    decoding, partial or waiting."""
    others = list(running.prefilling)
    if len(rows) + len(others) + min(running.free_slots, len(waiting)) <= size:
        return rows
    blocks = kv.device.free - reserve()
    for row in waiting.ahead(min(size, running.free_slots), now):
        blocks -= kv.look(row).cost
        if blocks < 0 or row.in_flight:
            break
        others.append(row)
    if len(rows) + len(others) <= size:
        return rows
    best = set(sorted((*rows, *others), key=lambda row: waiting.rank(row, now))[:size])
    return [row for row in rows if row in best]


def outranked(
    rows: Iterable[Row], *, head: Row, slots: int, blocks: int, waiting: WaitingQueue, kv: KvMemory, now: float
) -> list[Row]:
    """Under a preemptive order: those of `rows`, the last ranked first, of a strictly lower level than the waiting
    `head`, that give it the `slots` and `blocks` that it misses; none if all of them would not be enough."""
    level = waiting.rank(head, now).tier
    chosen: list[Row] = []
    for row in sorted(rows, key=lambda row: waiting.rank(row, now), reverse=True):
        if (slots <= 0 and blocks <= 0) or waiting.rank(row, now).tier <= level:
            break
        chosen.append(row)
        slots, blocks = slots - 1, blocks - kv.freed_by(row)
    return chosen if slots <= 0 and blocks <= 0 else []
