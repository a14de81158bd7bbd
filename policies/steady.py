"""Many equal steps at once, for a simulator: what a scheduler would go through while nothing changes.

A scheduler is steady while nobody waits, no prompt is under way, and every step in flight is one token of each decoding
row. Until a row ends, blocks run out or somebody comes, each result and the plan after it only move every row on by one
token, and `advance` moves them by many: positions, outputs, grown blocks, names, fences and steps in flight are as if
each step had been completed and planned in turn, down to the order of the free list.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque

from policies.config import SchedulerConfig
from policies.kv import KvMemory
from policies.order import WaitingQueue
from policies.rows import Flight, Row
from policies.running import Running
from policies.vocabulary import BLOCK_SIZE, Step

__all__ = ["advance", "steps_ahead"]

_Calendar = dict[int, list[tuple[Row, int]]]


def steps_ahead(
    config: SchedulerConfig, kv: KvMemory, running: Running, waiting: WaitingQueue, flights: deque[Flight]
) -> int:
    """How many results can be taken, and steps planned, without anything but that; 0: it is not steady.

    Of rows that end earlier than at `max_tokens` the caller knows more.
    """
    rows = running.decoding
    if len(waiting) or running.prefilling or running.draining or running.drops or not rows:
        return 0
    if waiting.preemptive or config.flex_yields or config.offload_share or config.force_preempt_every:
        return 0  # time alone changes something, or the number of the step
    if kv.device.fenced or kv.host.fenced or len(flights) < config.steps_in_flight:
        return 0
    if any(flight.decodes != len(rows) or flight.rows != rows for flight in flights):
        return 0
    most = min([row.left for row in rows]) - 1
    free = kv.device.free
    if len(rows) * (most // BLOCK_SIZE + 1) > free:
        most = min(most, free // len(rows) * BLOCK_SIZE)
    return max(0, most)


def advance(kv: KvMemory, running: Running, flights: deque[Flight], steps: int, planned: int) -> None:
    """`steps` times: the oldest step in flight gives every row token 0 and ends none, and the next one is planned.

    `planned` is the number of the last step. `steps` is at least 1, and at most what `steps_ahead` says.
    """
    rows = running.decoding
    registers, grows = _calendar(rows, steps)
    zeros = array("i", bytes(4 * steps))
    ends = []
    for row in rows:
        row.tokens.extend(zeros)
        row.left -= steps
        row.touched = planned + steps
        ends.append(row.computed + steps)
    kept_from = steps - len(flights) + 1  # the first of these plans that is in flight at the end
    grown: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number in range(1, steps + 1):
        for row, computed in registers.get(number % BLOCK_SIZE, ()):
            row.computed = computed + number
            kv.register(row)
        for row, position in grows.get(number % BLOCK_SIZE, ()):
            if position + number > row.room:
                block = kv.grow(row)
                if number >= kept_from:
                    grown[number].append((row.slot, block))
    for row, end in zip(rows, ends, strict=True):
        row.computed = end
    kv.acknowledge(planned - len(flights) + steps)
    _relaunch(running, flights, steps, planned, grown)


def _calendar(rows: list[Row], steps: int) -> tuple[_Calendar, _Calendar]:
    """In which steps, modulo a block, which rows fill a block, and in which they need another. In the order of rows,
    each with what it has computed, or been given, before."""
    registers: _Calendar = {}
    grows: _Calendar = {}
    for row in rows:
        computed = row.computed
        first = BLOCK_SIZE - computed % BLOCK_SIZE
        if first <= steps:
            registers.setdefault(first % BLOCK_SIZE, []).append((row, computed))
        position = computed + row.in_flight
        first = row.room - position + 1
        if first <= steps:
            grows.setdefault(first % BLOCK_SIZE, []).append((row, position))
    return registers, grows


def _relaunch(
    running: Running, flights: deque[Flight], steps: int, planned: int, grown: dict[int, list[tuple[int, int]]]
) -> None:
    """The steps in flight at the end."""
    rows, context = running.decoding, running.context
    in_flight = len(flights)
    for _ in range(min(steps, in_flight)):
        flights.popleft()
    for number in range(max(1, steps - in_flight + 1), steps + 1):
        slots = [row.slot for row in rows]
        step = Step(planned + number, [], [], [], [], slots, [1] * len(rows), grown.get(number, []))
        flight = Flight(step, rows[:], [], len(rows))
        flight.tokens, flight.context = len(rows), context + len(rows) * (number - 1)
        flights.append(flight)
    running.context = context + len(rows) * steps
