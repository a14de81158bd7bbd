"""What becomes of a request on a worker, foreseen from the worker's last report.

Admission judges by the state that a request will meet when it gets there, not by the state now: judging by the present
load makes load oscillate (Mooncake, section 7). A forecast is a fluid simulation in closed form between events, not step
by step, since a decision must cost microseconds. It follows what the scheduler does:

- every running row gets one token a step, and prompts share the rest of the step, by tier, then earliest deadline;
- the room for prompts is what `tokens_per_step` leaves, and what the tightest pace among the running rows leaves, where
  a row that is ahead of its pace lends its lead (Niyama's dynamic chunk, SLOs-Serve's prefill budget);
- slots free as rows end; KV peaks as in the Past-Future scheduler (LightLLM, ASPLOS'25; `_can_add` of S-LoRA);
- rows without a contract (flex) are not in the way of one that has a contract: their slots and blocks are reclaimed,
  and they sit out a step that a contract needs.

All times are upper ones: the step-time model times the P90 ratio of the report.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from math import ceil, inf

import msgspec

from policies.reasons import Reason
from policies.vocabulary import BLOCK_SIZE, RequestLoad, Tier, WorkerLoad

__all__ = ["Ask", "Forecast", "Outlook", "OutputHistory", "Reservation"]

_LEND_STEPS = 32  # a lead is lent to prompts over so many steps
_HORIZON = 64  # steps ahead at which contexts are taken for the pace
_MIN_ROOM = 16  # prompt tokens that every step gives, however tight the pace
_EPSILON = 1e-9


class OutputHistory:
    """How long each tenant's outputs were: the last `window` of each, for at most `tenants` tenants (LRU)."""

    def __init__(self, *, window: int = 256, tenants: int = 4096, enough: int = 20) -> None:
        self._window, self._tenants, self._enough = window, tenants, enough
        self._recent: OrderedDict[str, tuple[deque[int], list[int]]] = OrderedDict()

    def add(self, tenant: str, outputs: int) -> None:
        """A request of `tenant` ended after `outputs` tokens."""
        recent, ordered = self._recent.setdefault(tenant, (deque(), []))
        self._recent.move_to_end(tenant)
        recent.append(outputs)
        insort(ordered, outputs)
        if len(recent) > self._window:
            del ordered[bisect_left(ordered, recent.popleft())]
        if len(self._recent) > self._tenants:
            self._recent.popitem(last=False)

    def remaining(self, tenant: str, generated: int, at_most: int, quantile: float = 0.8) -> int:
        """Outputs still to come at that quantile, given that `generated` came; `at_most` where too few are known.

        The quantile is that of past lengths greater than `generated`, with the finite-sample correction.
        """
        known = self._recent.get(tenant)
        if known is None:
            return at_most
        ordered = known[1]
        first = bisect_right(ordered, generated)
        n = len(ordered) - first
        rank = ceil(quantile * (n + 1))
        if n < self._enough or rank > n:
            return at_most
        return min(at_most, ordered[first + rank - 1] - generated)


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was admitted (or is deferred ahead of the candidate), and that no report shows yet."""

    id: str
    worker: str
    tier: int
    prompt_tokens: int  # to compute: without a cached prefix
    max_tokens: int
    deadline_s: float | None = None  # instant of its TTFT deadline on the caller's clock
    tpot_s: float | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate wants of one worker. Times remaining from now, margin taken off already."""

    tier: int
    prefill: int  # prompt tokens to compute
    cached: int = 0  # prompt tokens that are in the prefix cache
    outputs: int  # expected
    first_token_in_s: float | None = None
    tpot_s: float | None = None


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What is foreseen. Seconds from now. `cause` says what the start waits for, with the figure and its bound."""

    hold_s: float  # earliest feasible start: slots, KV, paces and admitted first tokens forbid an earlier one
    start_s: float  # of its prompt, behind the prompts that go before
    first_token_s: float
    tpot_s: float  # of the batch that it joins
    alone_s: float  # its first token on an idle worker
    possible: bool  # on an idle worker
    cause: Reason
    measured: float
    threshold: float


#: A prompt in the queue: tier, deadline, sequence, tokens to compute, context, outputs, pace, begun, saved
_Job = tuple[int, float, int, int, int, int, float, bool, bool]


class Outlook:
    """A worker's near future, built once per report and asked per candidate.

    `with_flex`: count rows and prompts without a contract too, as a candidate without one must. `remaining` gives the
    outputs still expected of a live request; by default the most it may produce.
    """

    def __init__(
        self,
        load: WorkerLoad,
        reserved: Iterable[Reservation] = (),
        *,
        now: float = 0.0,
        with_flex: bool = False,
        kv_reserve: float = 0.05,
        remaining: Callable[[RequestLoad], int] | None = None,
    ) -> None:
        self._load = load
        c, u = load.step_time, max(load.ratio_p50, load.ratio_p90)
        self._floor, self._base, self._token = c.floor_s * u, c.base_s * u, c.per_token_s * u
        self._attended, self._context, self._row = c.per_attended_s * u, c.per_context_s * u, c.per_row_s * u
        self._capacity = int(load.blocks * BLOCK_SIZE * (1 - kv_reserve))
        self._rows: list[tuple[int, int, float]] = []  # outputs to come, context, allowed pace (inf: none)
        self._jobs: list[_Job] = []
        self._sum_context = 0
        self._lend = inf  # longest step while prompts borrow the leads
        self._begun = 0
        others = self._read(load.requests, with_flex, remaining)
        others |= self._read_reserved(reserved, now, with_flex)
        self._rows.sort()
        self._jobs.sort()
        count = max(1, len(self._rows))
        self._decode_s = self._step(count, 0.0, self._sum_context, count)
        # Up to two steps are in flight, with flex and all, and cannot be changed.
        self._others = others
        self._lag = 2 * self._in_flight_s() if load.requests else 0.0
        # Rows that share a prefix hold its blocks once: the share of their contexts that is really held.
        held = sum(r.context for r in load.requests)
        used = (load.blocks - load.free_blocks) * BLOCK_SIZE
        self._shared = min(1.0, used / held) if held else 1.0

    def ask(self, ask: Ask) -> Forecast:
        """What becomes of `ask` here: the four tests of contract admission, as times rather than yes or no."""
        alone, slowest = self._alone(ask)
        need = ask.prefill + ask.cached + ask.outputs + BLOCK_SIZE - 1
        own_pace = inf if ask.tpot_s is None else ask.tpot_s
        if need > self._capacity:
            return self._never(ask, alone, Reason.kv_exhausted, need, self._capacity)
        if slowest > own_pace:
            return self._never(ask, alone, Reason.tpot_unattainable, slowest, own_pace)
        wait_kv, peak = self._memory(ask)
        hold, start, finish, victim = self._walk(ask, wait_kv)
        pace_at, step, allowed = self._pace_holds(ask, finish)
        cause, measured, threshold = Reason.ttft_unattainable, finish, ask.first_token_in_s or inf
        if wait_kv > 0 and wait_kv >= hold:
            cause, measured, threshold = Reason.kv_exhausted, peak, self._capacity
        if victim > start:  # its prompt would make an admitted first token late: go after that one
            finish += victim - start
            hold, start, measured = victim, victim, finish
        if pace_at > finish:
            start, finish = start + pace_at - finish, pace_at
            hold = start
            cause, measured, threshold = Reason.tpot_unattainable, step, allowed
        return Forecast(
            hold_s=hold if hold > self._lag else 0.0,
            start_s=start,
            first_token_s=finish,
            tpot_s=min(step, max(allowed, self._decode_s)),
            alone_s=alone,
            possible=True,
            cause=cause,
            measured=measured,
            threshold=threshold,
        )

    # -- reading the report ------------------------------------------------------------------------------------------

    def _read(
        self, requests: list[RequestLoad], with_flex: bool, remaining: Callable[[RequestLoad], int] | None
    ) -> bool:
        """Sort the live requests into rows and prompts. Whether any prompt, flex ones included, fills the steps."""
        flex, busy, lend = int(Tier.flex), False, self._lend
        single = max(self._floor, self._base + self._token) + self._row
        for number, r in enumerate(requests):
            left = r.prefill_left
            if left > 1:
                busy = True
            if r.tier >= flex and not with_flex:
                continue
            outputs = r.outputs_left if remaining is None else remaining(r)
            context, tpot = r.context, r.tpot_s
            allowed = inf
            if tpot is not None:
                allowed = tpot + r.lead_s / (outputs or 1)
                # A row that even an empty worker could not save binds nobody.
                if single + self._context * (context + _HORIZON) > allowed:
                    allowed = inf
            if left <= 1:
                self._rows.append((outputs, context, allowed))
                self._sum_context += context
                if allowed < inf and tpot is not None:
                    lent = tpot + r.lead_s / min(_LEND_STEPS, outputs or 1) if r.lead_s > 0 else allowed
                    lend = min(lend, lent)
                continue
            deadline, begun = r.first_token_in_s, context > 0
            self._begun += begun
            order = (r.lead_s if tpot is not None and r.generated else inf) if deadline is None else deadline
            job = (r.tier, order, number, left, context, outputs, allowed, begun, deadline is not None)
            self._jobs.append(job)
        self._lend = lend
        return busy

    def _read_reserved(self, reserved: Iterable[Reservation], now: float, with_flex: bool) -> bool:
        known: set[str] | None = None
        busy, number = False, len(self._load.requests)
        for r in reserved:
            if r.worker != self._load.worker:
                continue
            if known is None:
                known = {request.id for request in self._load.requests}
            if r.id in known:
                continue
            busy = True
            if r.tier >= Tier.flex and not with_flex:
                continue
            number += 1
            deadline = inf if r.deadline_s is None else r.deadline_s - now
            pace = inf if r.tpot_s is None else r.tpot_s
            left = max(1, r.prompt_tokens)
            self._jobs.append((r.tier, deadline, number, left, 0, r.max_tokens, pace, False, deadline < inf))
        return busy

    # -- step times --------------------------------------------------------------------------------------------------

    def _step(self, tokens: float, attended: float, context: float, rows: float) -> float:
        dense = max(self._floor, self._base + self._token * tokens)
        return dense + self._attended * attended + self._context * context + self._row * rows

    def _in_flight_s(self) -> float:
        rows = sum(1 for r in self._load.requests if r.prefill_left <= 1)
        context = sum(r.context for r in self._load.requests if r.prefill_left <= 1)
        left = sum(r.prefill_left for r in self._load.requests if r.prefill_left > 1 and r.context > 0)
        prompt = min(left, max(0, self._load.tokens_per_step - rows))
        return self._step(rows + prompt, 0.0, context, rows + (prompt > 0))

    def _alone(self, ask: Ask) -> tuple[float, float]:
        """On an idle worker: the time to its first token, and its slowest step afterwards."""
        tokens = ask.cached + ask.prefill + _HORIZON
        return self._prompt_s(ask.prefill, ask.cached), self._step(1, 0.0, tokens, 1)

    def _prompt_s(self, left: int, context: int) -> float:
        """The time to compute `left` prompt tokens on an idle worker."""
        budget = self._load.tokens_per_step
        whole, rest = divmod(max(1, left), budget)
        time = whole * self._step(budget, 0.0, 0.0, 1) + self._attended * left * (context + left / 2)
        return time + self._step(rest, 0.0, 0.0, 1) if rest else time

    def _never(self, ask: Ask, alone: float, cause: Reason, measured: float, threshold: float) -> Forecast:
        return Forecast(
            hold_s=inf,
            start_s=inf,
            first_token_s=inf,
            tpot_s=self._alone(ask)[1],
            alone_s=alone,
            possible=False,
            cause=cause,
            measured=measured,
            threshold=threshold,
        )

    # -- the tests ---------------------------------------------------------------------------------------------------

    def _walk(self, ask: Ask, not_before: float) -> tuple[float, float, float, float]:
        """Prompts in order, the candidate among them.

        How long slots or KV hold it back, its start, its first token, and until when to keep behind a victim.
        """
        load, rows = self._load, self._rows
        deadline = inf if ask.first_token_in_s is None else ask.first_token_in_s
        mine = (ask.tier, deadline, 1 << 60)
        place = bisect_right(self._jobs, mine)
        pace = inf if ask.tpot_s is None else ask.tpot_s
        own: _Job = (*mine, max(1, ask.prefill), ask.cached, ask.outputs, pace, False, False)
        floor, base, token, per_attended = self._floor, self._base, self._token, self._attended
        decode, tightest = self._decode_s, self._lend
        count, context, gone, total = len(rows), self._sum_context, 0, len(rows)
        free = load.slots - count - self._begun
        releases: list[float] = []  # when slots free: of the prompts here from the start, of the rows once needed
        queued = False
        time, steps = self._lag, 0.0
        hold = start = finish = victim = 0.0
        shift = 0.0  # what the candidate adds to those behind it
        # Behind the candidate only prompts with a deadline matter, as far as the last of them.
        protected = max((i for i in range(len(self._jobs) - 1, place - 1, -1) if self._jobs[i][8]), default=place - 1)
        for position in range(max(place, protected + 1) + 1):
            if position == place:
                job, is_mine = own, True
            else:
                job, is_mine = self._jobs[position - (position > place)], False
            _, due, _, left, before, outputs, job_pace, begun, saved = job
            at = time
            if not begun:
                if free > 0:
                    free -= 1
                else:
                    if not queued:
                        queued = True
                        releases += [row[0] * decode for row in rows]
                        heapify(releases)
                    release = heappop(releases) if releases else inf
                    at = max(at, release)
                    if is_mine:
                        hold = release
            if not is_mine:
                time = at
            else:
                hold = max(hold, not_before)
                at = max(at, hold)
            while gone < total and rows[gone][0] * decode <= at:
                count -= 1
                context -= rows[gone][1]
                gone += 1
            # The room for prompts in a step, and the time of a step that uses it.
            middle = before + left * 0.5
            fixed = self._context * context + self._row * (count + 1)
            room: float = load.tokens_per_step - count
            if tightest < inf:
                spare = tightest - fixed
                paced = (
                    0.0 if spare < floor else (spare - base - token * count) / (token + per_attended * middle + 1e-12)
                )
                room = min(room, paced)
            room = max(room, _MIN_ROOM)
            dense = base + token * (count + room)
            step = (dense if dense > floor else floor) + per_attended * room * middle + fixed
            taken = left / room
            steps += taken
            spent = taken * step
            tail = (ceil(steps - _EPSILON) - steps) * step
            if not self._others and position == len(self._jobs):
                # Nobody fills the last step with other prompts: it is as short as its own tokens.
                last = left % room if left > room else left
                dense = base + token * (count + last)
                short = (dense if dense > floor else floor) + per_attended * last * middle + fixed
                tail = min(tail, short if last else 0.0)
            end = at + spent + tail
            if is_mine:
                start, finish, shift = at, end, spent
            elif saved and position > place and end > due >= self._prompt_s(left, before):
                victim = max(victim, end - shift)
            time = (time if is_mine else at) + spent
            if queued:
                heappush(releases, end + outputs * decode)
            else:
                releases.append(end + outputs * decode)
            count += 1
            context += before + left
            if job_pace < tightest:
                tightest = job_pace
        return hold, start, finish, victim

    def _waiting(self) -> list[_Job]:
        """The prompts that will run beside the candidate: as many as there are slots."""
        places = self._load.slots - len(self._rows) - 1
        return self._jobs[: max(0, places)]

    def _memory(self, ask: Ask) -> tuple[float, float]:
        """How long to wait until the future peak of KV fits, and that peak now, in tokens (Past-Future)."""
        round_up, shared = BLOCK_SIZE - 1, self._shared
        items = [(outputs, context * shared + round_up) for outputs, context, _ in self._rows]
        items += [(job[5], job[4] * shared + job[3] + round_up) for job in self._waiting()]
        mine = ask.prefill + ask.cached + round_up
        if sum(map(sum, items)) + mine + ask.outputs <= self._capacity:
            return 0.0, 0.0
        items.sort(reverse=True)
        peak = _peak(items, mine, ask.outputs, 0)
        if peak <= self._capacity:
            return 0.0, peak
        # A start at which it fits; as a rule the first such, since with each end the rest has more room.
        steps = sorted({outputs for outputs, _ in items})
        index = bisect_left(steps, True, key=lambda at: _peak(items, mine, ask.outputs, at) <= self._capacity)
        return steps[min(index, len(steps) - 1)] * self._decode_s, peak

    def _pace_holds(self, ask: Ask, finish: float) -> tuple[float, float, float]:
        """When the batch is small enough to keep every pace with the candidate in it; the step then now; the pace."""
        waiting = self._waiting()
        rows = self._rows
        if waiting:
            rows = sorted([*rows, *((job[5], job[4] + job[3], job[6]) for job in waiting)])
        decode, own = self._decode_s, inf if ask.tpot_s is None else ask.tpot_s
        first = next((i for i, row in enumerate(rows) if row[0] * decode > finish), len(rows))
        count = len(rows) - first + 1
        context = sum(row[1] for row in rows[first:]) + ask.prefill + ask.cached
        step = self._step(count, 0.0, context + _HORIZON * count, count)
        allowed = min(own, min((row[2] for row in rows[first:]), default=inf))
        if step <= allowed:
            return 0.0, step, allowed
        tightest = [own]  # by rows left, from the last to end
        for row in reversed(rows[first:]):
            tightest.append(min(tightest[-1], row[2]))
        left, now = context, step
        for ended, row in enumerate(rows[first:], start=1):
            left -= row[1]
            n = count - ended
            now = self._step(n, 0.0, left + _HORIZON * n, n)
            if now <= tightest[n - 1]:
                return row[0] * decode, step, allowed
        return 0.0, step, allowed


def _peak(items: list[tuple[int, float]], mine: float, outputs: int, start: int) -> float:
    """The most KV tokens held at once from step `start` on, when one that holds `mine` starts then.

    `items` are (outputs to come, tokens held), longest first. When the k-th ends, the k longest are there, and each
    grew by as many tokens as the k-th had to come.
    """
    peak = held = 0.0
    count, placed = 0, False
    for left, tokens in items:
        after = left - start
        if after <= 0:
            break
        if not placed and after <= outputs:
            placed = True
            held += mine
            count += 1
            peak = max(peak, held + (start + outputs) * count - start)
        # Those here before the start have grown by `start` already.
        held += tokens
        count += 1
        peak = max(peak, held + count * left - (start if placed else 0))
    if not placed:
        peak = max(peak, held + mine + (count + 1) * (start + outputs) - start)
    return peak
