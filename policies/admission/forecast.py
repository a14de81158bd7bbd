"""What becomes of a request on a worker: the four tests of contract admission, as times rather than yes or no.

Admission judges by the state that a request meets when it gets there, not by the state now: judging by the present load
makes load oscillate (Mooncake, section 7). A forecast is a fluid simulation, in closed form between events rather than
step by step, since a decision must cost microseconds. It follows what the scheduler does:

1. Prompts share what a step has left, by tier, then earliest deadline. What is left is bounded by `tokens_per_step` and
   by the tightest pace among the running rows, where a row ahead of its pace lends its lead (Niyama, SLOs-Serve).
2. The pace must hold for every row once the candidate decodes beside it.
3. The future peak of KV must stay under the capacity less a reserve (`future_kv.py`); slots free as rows end.
4. A prompt behind the candidate that would make its deadline must still make it.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heapify, heappop, heappush
from math import ceil, inf

import msgspec

from policies.admission.future_kv import Held, earliest_start, peak
from policies.admission.reasons import Reason
from policies.admission.worker_state import HORIZON, Prompt, Reservation, WorkerState
from policies.pace import LEND_STEPS, aimed_s
from policies.vocabulary import BLOCK_SIZE

__all__ = ["MIN_ROOM", "Ask", "Forecast", "Reservation", "forecast"]

#: Prompt tokens that a step takes at least, however tight the pace.
MIN_ROOM = 16
_ROUND_UP = BLOCK_SIZE - 1


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate wants of one worker. Times remain from now, with the margin taken off."""

    tier: int
    prefill: int  # prompt tokens to compute
    cached: int = 0  # prompt tokens that are in the prefix cache
    outputs: int  # expected
    first_token_in_s: float | None = None
    tpot_s: float | None = None


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is foreseen, in seconds from now. `cause` is what is in the way, with its figure and the bound on it."""

    hold_s: float  # earliest feasible start: slots, KV, paces or an admitted first token forbid an earlier one
    start_s: float  # of its prompt, behind the prompts that go before
    first_token_s: float
    tpot_s: float  # of the batch that it joins
    alone_s: float  # its first token on an idle worker
    possible: bool  # on an idle worker
    cause: Reason
    measured: float
    threshold: float
    yields: bool = False  # it is held for what others were promised: the scheduler itself would let it in at once


def forecast(state: WorkerState, ask: Ask, *, kv_reserve: float = 0.05, spare: float = 0.0) -> Forecast:
    """What becomes of `ask` on the worker of `state`, which was built for its kind of candidate.

    `spare`: share of its time that a prompt behind the candidate must have left, not to count as made late.
    """
    capacity = int(state.load.blocks * BLOCK_SIZE * (1 - kv_reserve))
    alone = state.prompt_s(ask.prefill, ask.cached)
    slowest = state.step(1, 0.0, ask.cached + ask.prefill + HORIZON, 1)
    pace = inf if ask.tpot_s is None else ask.tpot_s
    tokens = ask.prefill + ask.cached + _ROUND_UP
    if ask.prefill + ask.cached + ask.outputs > state.load.max_context:
        most = state.load.max_context
        return _never(alone, slowest, Reason.kv_exhausted, ask.prefill + ask.cached + ask.outputs, most)
    if tokens + ask.outputs > capacity:
        return _never(alone, slowest, Reason.kv_exhausted, tokens + ask.outputs, capacity)
    if slowest > pace:
        return _never(alone, slowest, Reason.tpot_unattainable, slowest, pace)

    held = _held(state)
    wait_kv = earliest_start(held, tokens, ask.outputs, capacity) * state.decode_s
    hold, start, first_token, victim = _walk(state, ask, wait_kv, spare)
    cause, measured, threshold = Reason.ttft_unattainable, first_token, ask.first_token_in_s or inf
    if wait_kv and wait_kv >= hold:
        cause, threshold = Reason.kv_exhausted, capacity
        measured = peak(sorted(held, reverse=True), tokens, ask.outputs)
    yields = victim > start
    if yields:  # before that one, it would make its first token late: go after it
        first_token += victim - start
        hold = start = victim
        measured, threshold = first_token, ask.first_token_in_s or inf
    pace_at, step, allowed = _pace(state, ask, first_token)
    if pace_at > first_token:
        yields = True
        start += pace_at - first_token
        hold, first_token = start, pace_at
        cause, measured, threshold = Reason.tpot_unattainable, step, allowed
    return Forecast(
        hold_s=hold if hold > state.lag_s else 0.0,
        start_s=start,
        first_token_s=first_token,
        tpot_s=min(step, max(allowed, state.decode_s)),
        alone_s=alone,
        possible=True,
        cause=cause,
        measured=measured,
        threshold=threshold,
        yields=yields,
    )


def _held(state: WorkerState) -> list[Held]:
    share = state.held_share
    held: list[Held] = [(outputs, context * share + _ROUND_UP) for outputs, context, _ in state.kept]
    return held + [(p[5], p[4] * share + p[3] + _ROUND_UP) for p in state.beside()]


def _never(alone: float, slowest: float, cause: Reason, measured: float, threshold: float) -> Forecast:
    return Forecast(
        hold_s=inf,
        start_s=inf,
        first_token_s=inf,
        tpot_s=slowest,
        alone_s=alone,
        possible=False,
        cause=cause,
        measured=measured,
        threshold=threshold,
    )


def _walk(state: WorkerState, ask: Ask, not_before: float, spare: float) -> tuple[float, float, float, float]:
    """Serve the prompts in order, the candidate among them.

    Returns until when slots or `not_before` hold it back, its start, its first token, and the end of the last prompt
    that it would make late, to go after (0: none).
    """
    prompts, slots = state.prompts, _Slots(state)
    due = inf if ask.first_token_in_s is None else ask.first_token_in_s
    place = bisect_right(prompts, (ask.tier, due, len(state.load.requests) + len(prompts) + 1))
    pace = inf if ask.tpot_s is None else aimed_s(ask.tpot_s)
    own: Prompt = (ask.tier, due, 0, max(1, ask.prefill), ask.cached, ask.outputs, pace, False, due)
    # Behind the candidate only prompts with a deadline matter, as far as the last of them.
    last = next((i for i in range(len(prompts) - 1, place - 1, -1) if prompts[i][8] < inf), place - 1)
    rows, count, context = state.rows, len(state.rows), state.context
    decode, joined, gone = state.decode_s, inf, 0
    lent_pace, even_pace, crowded = state.lent_pace, state.even_pace, state.crowded
    take, give = slots.take, slots.give
    time, steps = state.lag_s, 0.0
    hold = start = first_token = victim = delay = 0.0
    slower = 0.0  # by how much prompts have put off the ends of the rows
    for prompt in (*prompts[:place], own, *prompts[place : last + 1]):
        _, _, _, left, before, outputs, prompt_pace, begun, prompt_due = prompt
        free_at = 0.0 if begun else take(slower)
        at = time if time > free_at else free_at
        if prompt is own:
            hold = max(free_at, not_before)
            at = max(time, hold)
        while gone < len(rows) and rows[gone][0] * decode + slower <= at:
            count -= 1
            context -= rows[gone][1]
            gone += 1
        tightest = joined if joined < lent_pace else lent_pace
        room, step = _room(state, count, context, tightest, left, before)
        taken = left / room
        spent = taken * step
        done = lent_s = 0.0
        evened = joined if joined < even_pace else even_pace
        if evened != tightest and steps + taken > LEND_STEPS:  # leads are used up on the way
            lent = max(0.0, LEND_STEPS - steps)
            done, lent_s = lent * room, lent * step
            room, step = _room(state, count, context, evened, left - done, before + done)
            taken = lent + (left - done) / room
            spent = spent * done / left + (taken - lent) * step
        steps += taken
        end = at + spent
        if prompt is own or delay:
            end += (ceil(steps - 1e-9) - steps) * step
        if not crowded:
            # The only prompt there is: its last step is as short as its own tokens.
            whole, rest = divmod(left - done, room)
            last_s = _room(state, count, context, inf, rest, before, most=rest)[1] if rest else 0.0
            end = at + lent_s + whole * step + last_s
        if prompt is own:
            start, first_token, delay = at, end, spent
            time = max(time, free_at) + spent  # held back, it lets the others pass
        else:
            # One that an idle worker could not save either does not count.
            if delay and end + 2 * step > prompt_due * (1 - spare) and prompt_due >= state.prompt_s(left, before):
                victim = max(victim, end - delay)
            time = at + spent
        if step > decode:
            slower += spent - taken * decode
        give(end + outputs * decode - slower)
        count += 1
        context += before + left
        if prompt_pace < joined:
            joined = prompt_pace
    return hold, start, first_token, victim


class _Slots:
    """When slots are free: now, or as rows and prompts that hold them end (a queue of k servers)."""

    __slots__ = ("_ends", "_free", "_heaped", "_state")

    def __init__(self, state: WorkerState) -> None:
        self._state = state
        self._free = state.load.slots - len(state.kept) - state.begun
        self._ends: list[float] = []
        self._heaped = False

    def take(self, slower: float) -> float:
        """The instant from which one more slot is free, when prompts have put off every end by `slower`."""
        if self._free > 0:
            self._free -= 1
            return 0.0
        if not self._heaped:
            self._heaped = True
            self._ends += [row[0] * self._state.decode_s for row in self._state.kept]
            heapify(self._ends)
        return heappop(self._ends) + slower if self._ends else inf

    def give(self, at: float) -> None:
        """A slot that is held from now on is free again at that instant, before what is yet to put it off."""
        if self._heaped:
            heappush(self._ends, at)
        else:
            self._ends.append(at)


def _room(
    state: WorkerState, count: int, context: int, tightest: float, left: float, before: float, most: float = inf
) -> tuple[float, float]:
    """Prompt tokens that a step has room for beside `count` rows, and the time of such a step."""
    middle = before + left * 0.5
    fixed = state.per_context * context + state.per_row * (count + 1)
    room: float = state.load.tokens_per_step - count
    if tightest < inf:
        spare = tightest - fixed
        if spare < state.floor:
            room = 0.0
        else:
            slope = state.per_token + state.per_attended * middle
            room = min(room, (spare - state.base - state.per_token * count) / slope) if slope else room
    if room < MIN_ROOM:
        room = MIN_ROOM
    if room > most:
        room = most
    dense = state.base + state.per_token * (count + room)
    return room, (dense if dense > state.floor else state.floor) + state.per_attended * room * middle + fixed


def _pace(state: WorkerState, ask: Ask, first_token: float) -> tuple[float, float, float]:
    """When every pace holds with the candidate decoding too; the step at its first token; the pace that binds it."""
    own = inf if ask.tpot_s is None else aimed_s(ask.tpot_s)
    rows, beside = state.rows, state.beside()
    # All of them at once, none ended yet: as a rule that holds already.
    count = len(rows) + len(beside) + 1
    context = state.context + sum([p[4] + p[3] for p in beside]) + ask.prefill + ask.cached
    step = state.step(count, 0.0, context + HORIZON * count, count)
    allowed = min(own, state.pace, min([p[6] for p in beside], default=inf))
    if step <= allowed:
        return 0.0, step, allowed
    decode = state.decode_s
    rows = sorted([*rows, *((p[5], p[4] + p[3], p[6]) for p in beside)])
    rows = [row for row in rows if row[0] * decode > first_token]
    count = len(rows) + 1
    context = sum([row[1] for row in rows]) + ask.prefill + ask.cached
    step = state.step(count, 0.0, context + HORIZON * count, count)
    allowed = min(own, min([row[2] for row in rows], default=inf))
    if step <= allowed:
        return 0.0, step, allowed
    tightest = [own]  # of the k rows that end last
    for row in reversed(rows):
        tightest.append(min(tightest[-1], row[2]))
    pace_at = 0.0
    for row in rows:
        context -= row[1]
        count -= 1
        pace_at = row[0] * decode
        if state.step(count, 0.0, context + HORIZON * count, count) <= tightest[count - 1]:
            break
    return pace_at, step, allowed
