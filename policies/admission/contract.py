"""Contract admission: may this request start, must it wait, or is it refused with a time to come back?

A request is admitted only if its contract can be kept without breaking that of anything already admitted. The four
tests (prefill in time, pace for everyone, memory, nobody flips) are in `forecast.py`; here their figures become
one of three outcomes. A request whose deadline is lost is refused before any work is spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec

from policies.admission.forecast import Ask, Forecast, forecast
from policies.admission.lengths import MaxTokens, OutputLengths
from policies.admission.reasons import Reason
from policies.admission.situation import Situation, nobody
from policies.admission.verdict import Admit, Candidate, Defer, Policy, Refuse, Verdict
from policies.admission.worker_state import HORIZON, Reservation, WorkerState
from policies.vocabulary import Tier, WorkerLoad

__all__ = ["contract", "decide"]


_DEFAULTS = Policy()
#: Of what is left to others, the share of slots and blocks; of the time, it is the whole.
_ROOM_IN_MEMORY = 0.5


def decide(
    candidate: Candidate,
    loads: Sequence[WorkerLoad],
    reserved: Sequence[Reservation] = (),
    *,
    now: float,
    margin: float = 0.0,
    room: float = 0.0,
    jitter: float = 0.5,
    policy: Policy = _DEFAULTS,
    lengths: OutputLengths | None = None,
    keep_tpot_s: float | None = None,
) -> Verdict:
    """Admit, defer or refuse `candidate`, by the forecast of every worker in `loads` that serves its model.

    `reserved`: what was admitted since those reports, and what is deferred ahead of the candidate (on the worker of
    its verdict), so that a newcomer does not overtake. `margin`: share of the SLO to hold back. `room`: share of the
    time that it could wait, of slots and of blocks, that it must leave to others. `jitter` in [0, 1) spreads the
    retries. `lengths` knows what outputs to expect; without, every request uses all it may. `keep_tpot_s`: a
    pace that the candidate must leave possible even while nobody runs under it: for one without a contract the tightest
    that any tenant was promised on this model. Reports are taken as of now: an older one makes the forecast
    later by its age, never earlier. A candidate whose contract does not bind is admitted as `relegated` if it had one.
    With `policy.relegate` so is one whose contract cannot be kept now but could be on an idle worker. Pure: the caller
    reserves.
    """
    loads = [load for load in loads if load.model == candidate.model and load.slots and load.blocks]
    if not loads:
        return nobody(policy)
    situation = Situation(
        now=now,
        loads=loads,
        reserved=reserved,
        policy=policy,
        lengths=MaxTokens() if lengths is None else lengths,
        margin=margin,
        room=room,
        jitter=jitter,
        keep_tpot_s=keep_tpot_s,
    )
    return contract(candidate, situation)


def contract(candidate: Candidate, situation: Situation) -> Verdict:
    """`decide` on a situation."""
    verdict = _examine(candidate, situation, binds=candidate.binds)
    if not isinstance(verdict, Refuse):
        return verdict
    if situation.room and verdict.retry_after_s is None:
        # On a smaller worker it may look impossible; on a whole one it is only not now.
        whole = msgspec.structs.replace(verdict, retry_after_s=situation.retry_s(situation.policy.lookahead_s))
        situation.room = 0.0
        verdict = _examine(candidate, situation, binds=candidate.binds)
        verdict = verdict if isinstance(verdict, Refuse) and verdict.retry_after_s is None else whole
    if candidate.binds and situation.policy.relegate and verdict.retry_after_s is not None:
        lower = _examine(candidate, situation, binds=False)
        return verdict if isinstance(lower, Refuse) else lower
    return verdict


def _examine(candidate: Candidate, situation: Situation, *, binds: bool) -> Verdict:
    policy, now, margin, room = situation.policy, situation.now, situation.margin, situation.room
    ttft = candidate.ttft_s if binds else None
    terms = _Terms(
        binds=binds,
        relegated=not binds and candidate.tier < Tier.flex,
        tier=candidate.tier if binds else int(Tier.flex),
        ttft_s=ttft,
        tpot_s=candidate.tpot_s * (1 - situation.pace_margin) if binds and candidate.tpot_s else None,
        keep_tpot_s=None if situation.keep_tpot_s is None else situation.keep_tpot_s * policy.lower_pace,
        allowed_s=candidate.max_wait_s if ttft is None else ttft * (1 - margin),
        waited_s=max(0.0, now - candidate.arrived_s),
        room=room,
        reserve_s=0.0 if ttft is None else policy.ttft_reserve * ttft,
    )
    outputs, remaining = situation.outputs(candidate), situation.remaining()
    promised: dict[str, list[Reservation]] = {}
    for reservation in situation.reserved:
        promised.setdefault(reservation.worker, []).append(reservation)
    options = []
    for load in situation.loads:
        state = WorkerState(
            _smaller(load, room) if room else load,
            promised.get(load.worker, ()),
            now=now,
            contract=binds,
            flex_yields=policy.flex_yields,
            remaining=remaining,
        )
        ask = _ask(candidate, terms, state, outputs)
        options.append(
            _Option(load.worker, forecast(state, ask, kv_reserve=policy.kv_reserve, spare=policy.spare), terms)
        )
    ready = [o for o in options if o.headroom >= 0 and o.may_start(policy.lookahead_s)]
    if ready:
        # Best fit under a contract keeps room for what is tighter; without one, the emptiest worker is the kindest.
        best = min(ready, key=lambda o: o.headroom) if ttft is not None else max(ready, key=lambda o: o.headroom)
        return _admit(best, terms)
    later = [o for o in options if o.headroom >= 0]
    if later:
        return _defer(min(later, key=lambda o: o.forecast.hold_s), terms, now)
    return _refuse(options, terms, situation)


def _smaller(load: WorkerLoad, room: float) -> WorkerLoad:
    """The worker without what others may want of it."""
    slots, blocks = ceil(load.slots * room * _ROOM_IN_MEMORY), int(load.blocks * room * _ROOM_IN_MEMORY)
    return msgspec.structs.replace(
        load,
        slots=max(1, load.slots - slots),
        free_slots=max(0, load.free_slots - slots),
        blocks=load.blocks - blocks,
        free_blocks=max(0, load.free_blocks - blocks),
    )


class _Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The contract as it binds this request: none for one above its tenant's rate, or in the flex tier."""

    binds: bool
    relegated: bool
    tier: int
    ttft_s: float | None
    tpot_s: float | None
    keep_tpot_s: float | None
    allowed_s: float  # from arrival, margin taken off: to the first token under a contract, else to the start
    waited_s: float
    room: float
    reserve_s: float  # of the allowed time, for who must wait until others end


class _Option:
    """A worker that could serve it. `headroom`: what is left of the allowed time; negative, it would be late.

    What it must leave to others is not allowed: a share of the time that it could wait, not of that which its own
    prompt takes.
    """

    __slots__ = ("allowed_s", "forecast", "headroom", "late_s", "worker")

    def __init__(self, worker: str, forecast: Forecast, terms: _Terms) -> None:
        self.worker, self.forecast = worker, forecast
        self.late_s = forecast.start_s if terms.ttft_s is None else forecast.first_token_s
        own = 0.0 if terms.ttft_s is None else forecast.alone_s
        self.allowed_s = terms.allowed_s - terms.room * max(0.0, terms.allowed_s - own)
        if forecast.hold_s > 0:
            self.allowed_s -= terms.reserve_s
        self.headroom = self.allowed_s - terms.waited_s - self.late_s

    def may_start(self, lookahead_s: float) -> bool:
        """Now, or so soon that the scheduler's own queue bridges it; but there it would not go behind another."""
        return self.forecast.hold_s <= lookahead_s and not self.forecast.yields


def _ask(candidate: Candidate, terms: _Terms, state: WorkerState, outputs: int) -> Ask:
    cached = max(0, min(candidate.cached.get(state.load.worker, 0), candidate.prompt_tokens - 1))
    tpot = terms.tpot_s
    keep = terms.keep_tpot_s
    if keep is not None and state.step(1, 0.0, candidate.prompt_tokens + HORIZON, 1) <= keep:
        tpot = keep if tpot is None else min(tpot, keep)
    return Ask(
        tier=terms.tier,
        prefill=candidate.prompt_tokens - cached,
        cached=cached,
        outputs=outputs,
        first_token_in_s=None if terms.ttft_s is None else terms.allowed_s - terms.waited_s,
        tpot_s=tpot,
    )


def _admit(option: _Option, terms: _Terms) -> Admit:
    return Admit(
        worker=option.worker,
        tier=terms.tier,
        ttft_s=None if terms.ttft_s is None else terms.ttft_s - terms.waited_s,
        tpot_s=terms.tpot_s,
        predicted_ttft_s=terms.waited_s + option.forecast.first_token_s,
        predicted_tpot_s=option.forecast.tpot_s,
        headroom_s=option.headroom,
        relegated=terms.relegated,
    )


def _defer(option: _Option, terms: _Terms, now: float) -> Defer:
    forecast = option.forecast
    return Defer(
        worker=option.worker,
        until_s=now + forecast.hold_s,
        deadline_s=now + forecast.hold_s + option.headroom,
        predicted_ttft_s=terms.waited_s + forecast.first_token_s,
        predicted_tpot_s=forecast.tpot_s,
        reason=forecast.cause,
        tier=terms.tier,
    )


def _refuse(options: Sequence[_Option], terms: _Terms, situation: Situation) -> Refuse:
    """By the worker that would have it first. A fresh request that comes then has its whole contract before it."""
    best = min(options, key=lambda o: o.late_s)
    forecast, allowed = best.forecast, best.allowed_s
    if not forecast.possible:
        return Refuse(
            reason=forecast.cause, measured=forecast.measured, threshold=forecast.threshold, retry_after_s=None
        )
    if terms.ttft_s is not None and forecast.alone_s > allowed:
        return Refuse(
            reason=Reason.ttft_unattainable,
            measured=forecast.alone_s,
            threshold=terms.ttft_s,
            retry_after_s=None,
            predicted_ttft_s=forecast.alone_s,
        )
    retry = situation.retry_s(best.late_s - allowed)
    reason, measured, threshold = forecast.cause, forecast.measured, forecast.threshold
    if terms.waited_s >= allowed:
        reason, measured, threshold = Reason.deadline_exceeded, terms.waited_s, allowed
    elif reason is Reason.ttft_unattainable:
        measured, threshold = terms.waited_s + best.late_s, allowed
    return Refuse(
        reason=reason,
        measured=measured,
        threshold=threshold,
        retry_after_s=retry,
        predicted_ttft_s=terms.waited_s + forecast.first_token_s,
    )
