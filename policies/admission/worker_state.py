"""A worker's report, and what was promised since, in the form in which forecasts ask for it.

Step times here are upper ones: the model times the P90 ratio of actual over predicted, since a promise must hold nine
times in ten before margins, not on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import msgspec

from policies.pace import AIMED, LEND_STEPS, aimed_s
from policies.vocabulary import BLOCK_SIZE, RequestLoad, Tier, WorkerLoad

__all__ = ["HORIZON", "Prompt", "Reservation", "Row", "WorkerState"]

#: Steps ahead at which contexts are taken when a pace is judged.
HORIZON = 64

#: The order of a prompt whose deadline is past: behind all that are not, before those without one.
_LATE = 1e18

#: A decoding row: outputs to come, context, allowed pace (inf: it binds nobody).
Row = tuple[int, int, float]
#: A prompt in the queue: tier, order inside it, sequence; tokens to compute, context, outputs to come, allowed pace,
#: whether it has begun (so has a slot), seconds to its first-token deadline (inf: none). Tuples sort fast.
Prompt = tuple[int, float, int, int, int, int, float, bool, float]


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was admitted, or is deferred ahead of the candidate, and that no report shows yet."""

    id: str
    worker: str
    tier: int
    prompt_tokens: int  # to compute: without a cached prefix
    max_tokens: int
    deadline_s: float | None = None  # instant of its first-token deadline, on the caller's clock
    tpot_s: float | None = None
    outputs: int | None = None  # expected; None: all it may produce


class WorkerState:
    """What is running and queued on a worker, as it concerns one kind of candidate. Built once a report.

    `contract`: the candidate has one. Then prompts without one go behind it, and rows without one give up slots and
    blocks to it; they still take their part of each step, unless `flex_yields` (a scheduler that lets them sit out). A
    candidate without a contract sees everybody. `remaining` gives the outputs still expected of a live request; by
    default all it may produce. O(n log n) in the requests.
    """

    def __init__(
        self,
        load: WorkerLoad,
        reserved: Iterable[Reservation] = (),
        *,
        now: float = 0.0,
        contract: bool = True,
        flex_yields: bool = False,
        remaining: Callable[[RequestLoad], int] | None = None,
    ) -> None:
        c, u = load.step_time, max(load.ratio_p50, load.ratio_run_p90 or load.ratio_p90)
        self.load = load
        self.floor, self.base, self.per_token = c.floor_s * u, c.base_s * u, c.per_token_s * u
        self.per_attended, self.per_context, self.per_row = c.per_attended_s * u, c.per_context_s * u, c.per_row_s * u
        self.rows: list[Row] = []  # that take part in the steps, soonest to end first
        self.kept: list[Row] = self.rows  # of them, those that keep their slots and blocks
        self.prompts: list[Prompt] = []  # in the order of the scheduler
        self.begun = 0  # prompts that have a slot
        self.lent_pace = inf  # the longest step while prompts borrow the leads: for LEND_STEPS steps ...
        self.even_pace = inf  # ... and from then on
        self.crowded = False  # other prompts, of any tier, fill up every step
        self._read(load.requests, contract, flex_yields, remaining)
        self._promised(reserved, now, contract)
        self.rows.sort()
        self.prompts.sort()
        count = max(1, len(self.rows))
        self.context = sum([row[1] for row in self.rows])
        self.pace = min([row[2] for row in self.rows], default=inf)  # the tightest
        self.decode_s = self.step(count, 0.0, self.context, count)
        held = self._held
        used = (load.blocks - load.free_blocks) * BLOCK_SIZE
        #: Rows that share a prefix hold it once: what part of their contexts is really held.
        self.held_share = min(1.0, used / held) if held else 1.0
        # Two steps are in flight, as they are. If slots must be taken from others, two more: one preempts, one starts.
        self.lag_s = 0.0
        if load.requests:
            self.lag_s = (4 if contract and not load.free_slots else 2) * self._in_flight_s()

    def step(self, tokens: float, attended: float, context: float, rows: float) -> float:
        """The upper time of a step, in seconds."""
        dense = max(self.floor, self.base + self.per_token * tokens)
        return dense + self.per_attended * attended + self.per_context * context + self.per_row * rows

    def prompt_s(self, tokens: int, context: int) -> float:
        """The upper time to compute `tokens` of a prompt behind `context` on an idle worker."""
        budget = self.load.tokens_per_step
        whole, rest = divmod(max(1, tokens), budget)
        time = whole * self.step(budget, 0.0, 0.0, 1) + self.per_attended * tokens * (context + tokens / 2)
        return time + self.step(rest, 0.0, 0.0, 1) if rest else time

    def beside(self) -> list[Prompt]:
        """The prompts that will run beside a candidate: as many as there are slots."""
        return self.prompts[: max(0, self.load.slots - len(self.kept) - 1)]

    def _read(
        self,
        requests: list[RequestLoad],
        contract: bool,
        flex_yields: bool,
        remaining: Callable[[RequestLoad], int] | None,
    ) -> None:
        flex = int(Tier.flex)
        per_context, add_row, add_prompt = self.per_context, self.rows.append, self.prompts.append
        single = max(self.floor, self.base + self.per_token) + self.per_row + per_context * HORIZON
        add_kept: Callable[[Row], None] | None = None
        if contract:
            self.kept = []
            add_kept = self.kept.append
        decoding = decoded = started = prefilling = cached = 0
        for number, r in enumerate(requests):
            left, context = r.prefill_left, r.context
            decodes = left <= 1 and not r.waits  # who was preempted needs a slot again, however much of its KV is kept
            if decodes:
                decoding += 1
                decoded += context
            else:
                prefilling += 1
                if context:
                    cached += context
                    if not r.waits:
                        started += left
            outputs = r.outputs_left
            if contract and r.tier >= flex:
                if decodes and not flex_yields:
                    add_row((outputs, context, inf))
                continue
            if remaining is not None:
                outputs = remaining(r)
            tpot, allowed = r.tpot_s, inf
            if tpot is not None:
                lead, to_come = r.lead_s, outputs or 1
                aimed = tpot * AIMED  # in line, as below: this is asked of every row for every decision
                allowed = aimed + lead / to_come
                # A row that not even an empty worker could save binds nobody.
                if single + per_context * context > tpot + lead / to_come:
                    allowed = inf
                elif decodes:
                    most = r.outputs_left or 1
                    lent = aimed + lead / (LEND_STEPS if most > LEND_STEPS else most)
                    if lent < self.lent_pace:
                        self.lent_pace = lent
                    if aimed < self.even_pace:
                        self.even_pace = aimed
            if decodes:
                row = (outputs, context, allowed)
                add_row(row)
                if add_kept is not None:
                    add_kept(row)
            else:
                begun = context > 0 and not r.waits
                self.begun += begun
                due = r.first_token_in_s
                if due is None:
                    due = inf
                order = -inf if r.generated else due if due >= 0 else _LATE
                tier = -1 if begun and due < 0 and r.tier < flex else r.tier
                add_prompt((tier, order, number, left or 1, context, outputs, allowed, begun, due))
        self.crowded = prefilling > 0
        self._in_flight = decoding, decoded, started
        self._held = decoded + cached

    def _promised(self, reserved: Iterable[Reservation], now: float, contract: bool) -> None:
        known: set[str] | None = None
        number = len(self.load.requests)
        for r in reserved:
            if known is None:
                known = {request.id for request in self.load.requests}
            if r.id in known:
                continue
            self.crowded = True
            if contract and r.tier >= Tier.flex:
                continue
            number += 1
            due = inf if r.deadline_s is None else r.deadline_s - now
            pace = inf if r.tpot_s is None else aimed_s(r.tpot_s)
            tokens = max(1, r.prompt_tokens)
            outputs = r.max_tokens if r.outputs is None else r.outputs
            self.prompts.append((r.tier, _order(due), number, tokens, 0, outputs, pace, False, due))

    def _in_flight_s(self) -> float:
        """The time of a step as it is now, with rows of every tier."""
        rows, context, prompt = self._in_flight
        prompt = min(prompt, max(0, self.load.tokens_per_step - rows))
        # However long a prompt has begun, what is left of it goes into steps that keep the pace.
        full = self.step(rows + prompt, 0.0, context, rows + (prompt > 0))
        return min(full, max(self.step(rows, 0.0, context, rows), self.lent_pace))


def _order(due: float) -> float:
    # As the scheduler has it: who can still be in time, then who cannot any more, then who has no deadline.
    return due if due >= 0 else _LATE
