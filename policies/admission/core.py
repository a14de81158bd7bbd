"""The whole of admission for one actor, without I/O: what it has heard, what it let in, who waits, and every decision.

    door = Admission(policy)
    door.report(model, loads, now)                # whenever a scheduler reports
    verdict = door.arrive(request, now)           # Admit: reserved here; Defer: kept here; Refuse
    for decided in [*door.reexamine(model, now), *door.expire(now)]:
        ...                                       # deferred requests that are decided now
    door.settled(request.id, request.tenant, outputs=…, is_whole=…, ttft_kept=…, now=…)

The actor feeds it messages, the simulator a virtual clock. All of it is soft: after a restart `live` tells what is
under way. Everything is bounded: the deferred by `Policy.queue_size` a model, the rest by what is live.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, nextafter

import msgspec

from policies.admission.contract import contract
from policies.admission.deferred import Deferred
from policies.admission.lengths import HistoryLengths, OutputLengths
from policies.admission.margin import MarginBook
from policies.admission.model_state import ModelState, Waiting
from policies.admission.mooncake import mooncake, mooncake_naive
from policies.admission.no_evict import no_evict
from policies.admission.open_door import open_door
from policies.admission.reasons import Reason
from policies.admission.reservations import Reservations
from policies.admission.situation import Gate, Situation, nobody
from policies.admission.token_budget import token_budget
from policies.admission.verdict import (
    AdmissionKind,
    Admit,
    Candidate,
    Decided,
    Defer,
    Policy,
    Refuse,
    Verdict,
    candidate_of,
)
from policies.admission.worker_state import Reservation
from policies.overload import Level
from policies.vocabulary import Contract, Request, WorkerLoad

__all__ = ["Admission"]

_GATES: Mapping[AdmissionKind, Gate] = {
    "none": open_door,
    "no-evict": no_evict,
    "token-budget": token_budget,
    "mooncake-naive": mooncake_naive,
    "mooncake": mooncake,
    "contract": contract,
}
#: Deferred requests ahead that a newcomer's forecast counts: with so many it waits in any case.
_AHEAD = 64


class Admission:
    """Times are seconds of the caller's monotonic clock, and never go back.

    `seed`: of the jitter in times to come back; None draws one. `lengths`: what is known of outputs, by default the
    history of what was settled here. `contract_of` gives a tenant's contract (its target for attainment; by default
    0.99). `tightest_tpot_s` tells the tightest pace that any tenant was promised, so that requests without a contract
    leave room for it even before it comes. `load_stale_s`: a model whose last report is older has no worker.
    `freshen(workers, now)` gives newer reports of workers that a decision is about to look at, where there are any: for
    simulations of many workers, in which nobody reports what nobody looks at.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        seed: int | None = 0,
        lengths: OutputLengths | None = None,
        contract_of: Callable[[str], Contract | None] | None = None,
        tightest_tpot_s: Callable[[], float | None] | None = None,
        load_stale_s: float = inf,
        freshen: Callable[[Sequence[str], float], Sequence[WorkerLoad]] | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self._gate = _GATES[self.policy.kind]
        self._is_fair = self.policy.kind == "contract" and self.policy.fair_room > 0
        # From `defer` on best effort does not queue behind the door, from `refuse` on nothing becomes best effort.
        self._pressed = msgspec.structs.replace(self.policy, lookahead_s=0.0)
        self._saturated = msgspec.structs.replace(self.policy, relegate=False)
        self._random = random.Random(seed)
        self._lengths = HistoryLengths() if lengths is None else lengths
        self._contract_of = contract_of or (lambda tenant: None)
        self._tightest_tpot_s = tightest_tpot_s or (lambda: None)
        self._load_stale_s = load_stale_s
        self._freshen = freshen
        self._models: dict[str, ModelState] = {}
        self._reservations = Reservations()
        self._model_of: dict[str, str] = {}  # of the deferred, by id
        self._margins = MarginBook()
        self._turned_away: list[Decided] = []

    def __len__(self) -> int:
        """Deferred requests."""
        return len(self._model_of)

    def __contains__(self, request_id: object) -> bool:
        """Whether that request is deferred."""
        return request_id in self._model_of

    # --- deciding

    def arrive(
        self,
        request: Request,
        now: float,
        *,
        arrived_s: float | None = None,
        committed: bool = True,
        patience_s: float = 30.0,
        cached: Mapping[str, int] = {},
    ) -> Verdict:
        """Decide on a newcomer. Admitted, it is reserved; deferred, it is kept, and decided by `reexamine` or `expire`.

        `arrived_s`: when it came, if not now. `committed`: within its tenant's rate, so that its contract binds.
        `patience_s`: how long it may wait for its start where it has no deadline. `cached`: its prompt tokens in the
        prefix caches, by worker. Who gives up its place in a full queue is in the next `expire`; `wake_at` is -inf
        until then.
        """
        arrived = now if arrived_s is None else arrived_s
        candidate = candidate_of(request, arrived, committed=committed, patience_s=patience_s, cached=cached)
        verdict = self._verdict(candidate, now)
        if self._is_fair and not (isinstance(verdict, Refuse) and verdict.retry_after_s is None):
            state = self._models.get(candidate.model)
            if state is not None and len(state.fleet):
                fair = state.fair[candidate.binds]
                if not isinstance(verdict, Admit):
                    fair.short(now)
                fair.asked(request.tenant, state.cost_s(candidate, self._outputs(candidate)), request.weight, now)
                fair.decided(request.tenant, refused=isinstance(verdict, Refuse), now=now)
        if candidate.binds and candidate.model in self._models:
            self._models[candidate.model].promised(candidate, now)
        return self._settle_on(request, candidate, verdict, now)

    def level(self, model: str) -> Level:
        """How far up the overload ladder that model is."""
        state = self._models.get(model)
        return Level.calm if state is None else state.level

    def levels(self) -> dict[str, Level]:
        """`level` of every model that was asked for or reported."""
        return {model: state.level for model, state in self._models.items()}

    def margins(self, tenant: str, tier: int) -> tuple[float, float]:
        """The shares of the time to the first token, and of the pace, that are held back of what that tenant is
        promised."""
        return self._margins.of(tenant, tier)

    def explain(self, request: Request, now: float, *, committed: bool = True, patience_s: float = 30.0) -> Verdict:
        """What `arrive` would say. Changes nothing."""
        candidate = candidate_of(request, now, committed=committed, patience_s=patience_s)
        return self._verdict(candidate, now, jitter=0.5)

    def reexamine(self, model: str, now: float) -> list[Decided]:
        """Look at the deferred of a model again, in their order, up to the first that has to wait on.

        To be called after a report; at most `Policy.looked_at` are looked at.
        """
        state = self._models.get(model)
        if state is None or not len(state.deferred):
            return []
        decided = self._expired(state, now)
        order = [entry.what for entry in state.deferred.order(self.policy.looked_at)]
        # Who is above its fair line goes last, and holds up nobody who is not.
        order.sort(key=lambda waiting: self._leaves_room(state, waiting.candidate, now))
        for waiting in order:
            verdict = self._verdict(waiting.candidate, now)
            verdict = self._settle_on(waiting.request, waiting.candidate, verdict, now)
            if isinstance(verdict, Defer):
                break
            decided.append(Decided(waiting.request, waiting.candidate, verdict))
        return decided

    def expire(self, now: float) -> list[Decided]:
        """Refuse the deferred whose time is over, and those that gave up their places. To be called at `wake_at`."""
        decided, self._turned_away = self._turned_away, []
        for state in self._models.values():
            decided += self._expired(state, now)
        return decided

    def wake_at(self) -> float:
        """The next instant at which `expire` has something to tell; inf: never, unless something else happens."""
        if self._turned_away:
            return -inf
        first = min((state.deferred.expires_at() for state in self._models.values()), default=inf)
        return nextafter(first, inf)  # at its deadline a request may still start

    # --- what is heard

    def report(self, model: str, loads: Sequence[WorkerLoad], now: float, *, whole: bool = True) -> None:
        """Fresh reports of the workers of a model. `whole`: all of its workers, others are gone; else some of them."""
        state = self._models.get(model)
        if state is None:
            state = self._models[model] = ModelState(self.policy)
        fleet = state.fleet
        fleet.heard_at = now
        changed = self._reservations.reported(loads, now)
        serving = [load for load in loads if load.model == model and load.slots and load.blocks]
        if whole:
            fleet.keep({load.worker for load in serving})
        for load in serving:
            fleet.update(load, self._reservations.pending(model, load.worker))
            changed.discard((model, load.worker))
        for where in changed:
            self._repend(where)
        state.climb(now)

    def settled(
        self,
        request_id: str,
        tenant: str,
        *,
        outputs: int,
        is_whole: bool,
        now: float,
        ttft_kept: bool | None = None,
        tpot_kept: bool | None = None,
    ) -> None:
        """An admitted request is over. `is_whole`: it ended by itself. `ttft_kept`, `tpot_kept`: its promises; None:
        not promised, or cut short."""
        self._end(request_id)
        self._lengths.ended(request_id, tenant, outputs if is_whole else None)
        self._margins.observe(tenant, self._contract_of(tenant), ttft_kept, tpot_kept)

    def cancel(self, request_id: str, now: float) -> str | None:
        """The client left. Returns the tenant, if the request was admitted; a deferred one just leaves its place."""
        self._leave(request_id)
        tenant = self._end(request_id)
        if tenant is not None:
            self._lengths.ended(request_id, tenant, None)
        return tenant

    def live(self, entries: Iterable[tuple[str, str, int]], now: float) -> list[tuple[str, str, int]]:
        """A gateway says what it has under way, as (id, tenant, tokens). Returns those that were not known here, which
        count from now on."""
        unknown = self._reservations.live(entries, now)
        for request_id, tenant, _ in unknown:
            self._lengths.begun(request_id, tenant)
        return unknown

    def abandoned(self, now: float) -> list[tuple[str, str]]:
        """(id, tenant) of the admitted that no gateway has confirmed for a while; they are given back here."""
        gone = []
        for request_id, tenant, where in self._reservations.abandoned(now):
            self._lengths.ended(request_id, tenant, None)
            self._repend(where)
            gone.append((request_id, tenant))
        return gone

    # --- inside

    def _verdict(self, candidate: Candidate, now: float, jitter: float | None = None) -> Verdict:
        state, policy = self._models.get(candidate.model), self.policy
        if state is None or not len(state.fleet) or now - state.fleet.heard_at >= self._load_stale_s:
            return nobody(policy)
        room = state.fair[candidate.binds].room if self._leaves_room(state, candidate, now) else 0.0
        if state.level >= Level.relegate and room and policy.relegate and candidate.binds:
            candidate = msgspec.structs.replace(candidate, committed=False)
        if state.level >= Level.refuse:
            policy = self._saturated
            if not candidate.binds and candidate.id not in state.deferred:
                return state.overloaded(self._random.random())
        if state.level >= Level.defer and not candidate.binds:
            policy = self._pressed
        binds = candidate.binds and policy.kind == "contract"  # the others know no classes
        time_s = candidate.ttft_s if binds and candidate.ttft_s is not None else candidate.max_wait_s
        loads = state.fleet.shortlist(
            1 if policy.kind == "none" else policy.shortlist, binding=binds, time_s=time_s, cached=candidate.cached
        )
        margin, pace_margin = self._margins.of(candidate.tenant, candidate.tier)
        wait_s, step_s = state.fleet.estimate(loads[0].worker, binding=binds)
        situation = Situation(
            now=now,
            loads=loads,
            reserved=self._reserved(state, candidate, loads, now),
            policy=policy,
            lengths=self._lengths,
            margin=margin,
            pace_margin=pace_margin,
            room=room,
            jitter=self._random.random() if jitter is None else jitter,
            keep_tpot_s=state.kept_pace_s(candidate, room, now, self._tightest_tpot_s),
            wait_s=wait_s,
            step_s=step_s,
        )
        return self._gate(candidate, situation)

    def _reserved(
        self, state: ModelState, candidate: Candidate, loads: Sequence[WorkerLoad], now: float
    ) -> list[Reservation]:
        """What no report shows on these workers: admitted since, and deferred ahead of a newcomer. Those above their
        fair line are not ahead of one who is not."""
        reserved = [r for load in loads for r in self._reservations.pending(candidate.model, load.worker)]
        if len(state.deferred) and candidate.id not in state.deferred:
            workers = {load.worker for load in loads}
            fair = not self._leaves_room(state, candidate, now)
            for entry in state.deferred.order(_AHEAD):
                waiting = entry.what
                if entry.tier > candidate.tier or waiting.claim.worker not in workers:
                    continue
                if not (fair and self._leaves_room(state, waiting.candidate, now)):
                    reserved.append(waiting.claim)
        return reserved

    def _leaves_room(self, state: ModelState, candidate: Candidate, now: float) -> bool:
        return self._is_fair and state.must_leave_room(candidate, now)

    def _outputs(self, candidate: Candidate) -> int:
        return self._lengths.expected(candidate, self.policy.outputs_quantile)

    def _settle_on(self, request: Request, candidate: Candidate, verdict: Verdict, now: float) -> Verdict:
        """Do what the verdict says. A deferral that finds no place becomes a refusal."""
        if isinstance(verdict, Defer):
            return self._defer(request, candidate, verdict, now)
        self._leave(request.id)
        if isinstance(verdict, Admit):
            claim = self._claim(candidate, verdict, None if verdict.ttft_s is None else now + verdict.ttft_s)
            self._reservations.add(request.model, request.tenant, claim, now)
            self._lengths.begun(request.id, request.tenant)
            state = self._models[request.model]
            state.fleet.pend(claim)
            if self._is_fair:
                state.fair[candidate.binds].got(request.tenant, state.cost_s(candidate, self._outputs(candidate)), now)
            if claim.outputs is not None and claim.outputs < request.max_tokens:
                verdict = msgspec.structs.replace(verdict, outputs=claim.outputs)
        return verdict

    def _defer(self, request: Request, candidate: Candidate, verdict: Defer, now: float) -> Verdict:
        due = None if candidate.ttft_s is None else candidate.arrived_s + candidate.ttft_s
        entry = Deferred(
            id=request.id,
            tenant=request.tenant,
            tier=verdict.tier,
            deadline_s=verdict.deadline_s,
            until_s=verdict.until_s,
            what=Waiting(request, candidate, self._claim(candidate, verdict, due)),
        )
        deferred = self._models[request.model].deferred
        out = deferred.add(entry)
        if out is not entry:
            self._model_of[request.id] = request.model
        if out is None:
            return verdict
        self._model_of.pop(out.id, None)
        refusal = Refuse(
            reason=Reason.queue_full,
            measured=len(deferred),
            threshold=self.policy.queue_size,
            retry_after_s=max(self.policy.retry_floor_s, out.until_s - now),
        )
        if out is entry:
            return refusal
        self._turned_away.append(Decided(out.what.request, out.what.candidate, refusal))
        return verdict

    def _claim(self, candidate: Candidate, verdict: Admit | Defer, deadline_s: float | None) -> Reservation:
        cached = min(candidate.cached.get(verdict.worker, 0), candidate.prompt_tokens - 1)
        bound = verdict.tier == candidate.tier
        return Reservation(
            id=candidate.id,
            worker=verdict.worker,
            tier=verdict.tier,
            prompt_tokens=candidate.prompt_tokens - max(0, cached),
            max_tokens=candidate.max_tokens,
            deadline_s=deadline_s if bound else None,
            tpot_s=candidate.tpot_s if bound else None,
            outputs=self._outputs(candidate),
        )

    def _expired(self, state: ModelState, now: float) -> list[Decided]:
        decided = []
        for entry in state.deferred.expired(now):
            self._model_of.pop(entry.id, None)
            candidate = entry.what.candidate
            allowed = candidate.max_wait_s if candidate.ttft_s is None else candidate.ttft_s
            refusal = Refuse(
                reason=Reason.deadline_exceeded,
                measured=now - candidate.arrived_s,
                threshold=allowed,
                retry_after_s=max(self.policy.retry_floor_s, entry.until_s - now),
            )
            decided.append(Decided(entry.what.request, candidate, refusal))
        return decided

    def _leave(self, request_id: str) -> None:
        model = self._model_of.pop(request_id, None)
        if model is not None:
            self._models[model].deferred.remove(request_id)

    def _end(self, request_id: str) -> str | None:
        tenant, where = self._reservations.end(request_id)
        self._repend(where)
        return tenant

    def _repend(self, where: tuple[str, str]) -> None:
        state = self._models.get(where[0])
        if state is not None:
            state.fleet.repend(where[1], self._reservations.pending(*where))
