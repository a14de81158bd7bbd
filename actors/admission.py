"""The admission actor: the tenant's own limits first, then the contract; admit, defer, or refuse with a time to come
back.

Every decision is a pure function of policies/ over what this actor has heard: the tenants' bucket, the schedulers'
loads, its own reservations. All of that is soft: after a restart the gateways tell what is under way, and the ledger
what the day used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec
import structlog

from actors.addresses import scheduler_of
from actors.messages import (
    Admit,
    Cancel,
    Decision,
    Explain,
    Live,
    Load,
    Quota,
    QuotaQuery,
    ReportLive,
    Settle,
    Submit,
    UsageQuery,
    UsageRows,
)
from actors.refusals import denied, refused, unattainable
from actors.request_spans import record_admission_span
from actors.reservations import Reservations
from actors.runtime import Actor, ActorError, Context, Node, handles, heartbeat
from actors.tenant_limits import LimitsBook
from actors.waiting_room import Waiting, WaitingRoom
from observability.metrics import DecisionMetrics
from observability.tracing import Tracing
from policies import admission as rules
from policies.admission.deferred import Deferred
from policies.admission.forecast import OutputHistory
from policies.admission.reasons import Reason
from policies.limits import Denied
from policies.vocabulary import Request, Tenant, WorkerLoad

__all__ = ["AdmissionActor"]

#: Decisions kept for a gateway that asks again because it did not hear the first answer.
_KEPT_DECISIONS = 8192
#: Deferred requests looked at again per report of load: each costs a forecast.
_LOOKED_AT = 64
#: A report of load that is older says nothing any more.
_LOAD_STALE_S = 2.0
#: So long a new admission actor waits to hear of a load, which comes every 100 ms, before it turns anybody away.
_FIRST_LOAD_S = 1.0


class AdmissionActor(Actor):
    """`tenants` is the live directory: name → Tenant, kept fresh by the caller."""

    role = "admission"
    mailbox = 4096

    def __init__(
        self,
        *,
        tenants: Mapping[str, Tenant],
        metrics: DecisionMetrics,
        tracing: Tracing,
        policy: rules.Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self._tenants = tenants
        self._metrics = metrics
        self._tracing = tracing
        self._policy = policy or rules.Policy()
        self._clock = clock
        self._random = random.Random(seed)
        self._limits = LimitsBook(tenants, clock)
        self._loads: dict[str, tuple[float, list[WorkerLoad]]] = {}
        self._heard_any = asyncio.Event()
        self._decide_from_s = 0.0
        self._reservations = Reservations()
        self._waiting = WaitingRoom()
        self._deciding: dict[str, asyncio.Task[Decision]] = {}
        self._decided: OrderedDict[str, Decision] = OrderedDict()
        self._margins: dict[str, rules.Margin] = {}
        self._history = OutputHistory()
        self._log = structlog.get_logger()

    # --- life
    # ---------------------------------------------------------------------------------------------------------

    async def on_start(self, node: Node) -> None:
        self._decide_from_s = self._clock() + _FIRST_LOAD_S
        await self.listen("scheduler", Load, self._heard_load)
        await self.listen("gateway", Live, self._heard_live)
        await node.publish(self.role, ReportLive())
        self.spawn(self._restore_day())
        self.every(0.02, self._expire)
        self.every(1.0, self._reconcile)
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready", "deferred": len(self._waiting)})

    async def _restore_day(self) -> None:
        """What the day's budgets have used, from the ledger; asked again until it answers."""
        query = UsageQuery(since=time.strftime("%Y-%m-%d", time.gmtime()), limit=100_000)
        while True:
            try:
                self._limits.restore_day((await self.node.ask("ledger.any", query, want=UsageRows, timeout_s=2.0)).rows)
                return
            except ActorError:
                await asyncio.sleep(1.0)

    # --- deciding
    # -----------------------------------------------------------------------------------------------------

    @handles(concurrent=True)
    async def admit(self, msg: Admit, ctx: Context) -> Decision:
        """Final: a deferred request is answered when it is admitted, or when its time is over.

        The decision outlives the ask: a gateway that heard nothing asks again, and gets the same one.
        """
        request_id = msg.request.id
        decided = self._decided.get(request_id)
        if decided is not None:
            return decided
        deciding = self._deciding.get(request_id)
        if deciding is None:
            deciding = self._deciding[request_id] = self.spawn(self._decide(msg))
        return await asyncio.shield(deciding)

    async def _decide(self, msg: Admit) -> Decision:
        request = msg.request
        arrived, arrived_ns = self._clock(), time.time_ns()
        await self._oriented(arrived)
        decision = self._decided.get(request.id) or await self._reserve(msg, arrived)
        if decision.outcome == "admitted":
            self._metrics.decided("admitted")
        else:
            self._metrics.decided("refused", decision.reason, retry_after_s=decision.retry_after_s)
        self._keep(request.id, decision)
        del self._deciding[request.id]
        record_admission_span(self._tracing, request, decision, since_unix_ns=arrived_ns)
        return decision

    def _keep(self, request_id: str, decision: Decision) -> None:
        self._decided[request_id] = decision
        if len(self._decided) > _KEPT_DECISIONS:
            self._decided.popitem(last=False)

    async def _oriented(self, now: float) -> None:
        """One that has just started knows of no worker yet, and would refuse what can be served."""
        if not self._heard_any.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._decide_from_s - now)):
                    await self._heard_any.wait()

    async def _reserve(self, msg: Admit, arrived: float) -> Decision:
        """Take what it could use from the tenant's limits, then see about its contract; a refusal gives all back."""
        request = msg.request
        quota = self._limits.quota(request.tenant)
        grant = self._limits.reserve(request)
        if grant is None:
            why = f"tenant {request.tenant!r} is not known here yet, or not any more"
            return refused(Reason.unavailable, quota=quota, why=why, retry_after_s=1.0)
        if isinstance(grant, Denied):
            return denied(grant, quota=quota)
        candidate = _candidate(request, arrived, committed=grant.committed, patience_s=msg.patience_s)
        decision = self._examine(request, candidate) or await self._waiting.wait(request.id)
        if decision.outcome != "admitted":
            self._limits.cancel(request.id, request.tenant)
        return decision

    def _examine(self, request: Request, candidate: rules.Candidate) -> Decision | None:
        """Decide now. None: it waits."""
        now = self._clock()
        verdict = self._verdict(candidate, now)
        if isinstance(verdict, rules.Admit):
            self._submit(request, verdict, now)
            return Decision(
                outcome="admitted",
                predicted_ttft_s=verdict.predicted_ttft_s,
                predicted_tpot_s=verdict.predicted_tpot_s,
                deferred_s=now - candidate.arrived_s if request.id in self._waiting else 0.0,
                quota=self._limits.quota(request.tenant),
            )
        if isinstance(verdict, rules.Refuse):
            return unattainable(verdict, candidate, quota=self._limits.quota(request.tenant))
        self._defer(Waiting(request, candidate, verdict.worker), verdict)
        return None

    def _verdict(self, candidate: rules.Candidate, now: float) -> rules.Verdict:
        heard_at, loads = self._loads.get(candidate.model, (0.0, []))
        margin = self._margins.get(candidate.tenant)
        return rules.decide(
            candidate,
            loads if now - heard_at < _LOAD_STALE_S else [],
            [*self._reservations.pending(candidate.model), *self._ahead(candidate, now)],
            now=now,
            margin=margin.value if margin else 0.0,
            jitter=self._random.random(),
            policy=self._policy,
            history=self._history,
            tenant_of=self._reservations.tenants,
            keep_tpot_s=self._tightest_pace_s(),
        )

    def _tightest_pace_s(self) -> float | None:
        """The tightest pace that any tenant was promised: those without a contract leave room for it."""
        paces = [tenant.contract.tpot_ms for tenant in self._tenants.values() if tenant.contract.tier != "flex"]
        return min((pace / 1000 for pace in paces if pace is not None), default=None)

    def _submit(self, request: Request, verdict: rules.Admit, now: float) -> None:
        """On the terms of the verdict: the tier that it was admitted at, and the time that is left."""
        reservation = rules.Reservation(
            id=request.id,
            worker=verdict.worker,
            tier=verdict.tier,
            prompt_tokens=len(request.prompt) // 4,
            max_tokens=request.max_tokens,
            deadline_s=None if verdict.ttft_s is None else now + verdict.ttft_s,
            tpot_s=verdict.tpot_s,
        )
        self._reservations.add(request, reservation, now)
        on_terms = msgspec.structs.replace(request, tier=verdict.tier, ttft_s=verdict.ttft_s, tpot_s=verdict.tpot_s)
        self.node.tell_soon(scheduler_of(request.model), Submit(request=on_terms))

    # --- waiting
    # ------------------------------------------------------------------------------------------------------

    def _defer(self, waiting: Waiting, verdict: rules.Defer) -> None:
        if waiting.candidate.id not in self._waiting:
            self._metrics.decided("deferred", verdict.reason.value)
        out = self._waiting.put(waiting, verdict)
        if out is not None:
            why = f"{len(self._waiting)} requests wait already, {self._waiting.held(out.tenant)} of them of this tenant"
            self._turn_away(out, Reason.queue_full, why=why)

    def _turn_away(
        self, entry: Deferred[Waiting], reason: Reason, *, why: str = "", measured: float = 0.0, threshold: float = 0.0
    ) -> None:
        decision = refused(
            reason,
            quota=self._limits.quota(entry.tenant),
            why=why,
            measured=measured,
            threshold=threshold,
            retry_after_s=max(self._policy.retry_floor_s, entry.until_s - self._clock()),
        )
        self._waiting.answer(entry.id, decision)

    def _due(self, now: float) -> list[Deferred[Waiting]]:
        """The deferred in their order. Those whose time is over are refused here."""
        expired, order = self._waiting.due(now)
        for entry in expired:
            candidate = entry.what.candidate
            allowed = candidate.ttft_s or candidate.max_wait_s
            waited = now - candidate.arrived_s
            self._turn_away(entry, Reason.deadline_exceeded, measured=waited, threshold=allowed)
        return order

    def _ahead(self, candidate: rules.Candidate, now: float) -> list[rules.Reservation]:
        """The deferred that a newcomer must not overtake."""
        if candidate.id in self._waiting or not len(self._waiting):
            return []
        return [
            entry.what.reservation()
            for entry in self._due(now)
            if entry.tier <= candidate.tier and entry.what.candidate.model == candidate.model
        ]

    def _reexamine(self, model: str) -> None:
        """Look at the deferred again, in their order, up to the first that has to wait on."""
        for entry in self._due(self._clock())[:_LOOKED_AT]:
            if entry.what.candidate.model == model:
                decision = self._examine(entry.what.request, entry.what.candidate)
                if decision is None:
                    return
                self._waiting.answer(entry.id, decision)

    async def _expire(self) -> None:
        self._due(self._clock())

    @handles
    def cancel(self, msg: Cancel, ctx: Context) -> None:
        """The client left while its request waited here, or before its gateway heard the decision."""
        left = refused(Reason.cancelled, quota=None, why="its client left")
        self._waiting.answer(msg.request, left)
        self._keep(msg.request, left)  # where nobody has looked at it yet, nobody needs to
        tenant = self._reservations.end(msg.request)
        if tenant is not None:
            self._limits.cancel(msg.request, tenant)

    # --- what becomes of the admitted
    # ---------------------------------------------------------------------------------

    def _heard_load(self, load: Load, ctx: Context) -> None:
        now = self._clock()
        self._loads[load.model] = (now, load.workers)
        self._heard_any.set()
        self._reservations.reported(load.model, load.workers, now)
        self._reexamine(load.model)

    @handles
    def settle(self, msg: Settle, ctx: Context) -> None:
        self._limits.settle(msg.request, msg.tenant, msg.prompt_tokens + msg.output_tokens)
        self._reservations.end(msg.request)
        if msg.is_whole:
            self._history.add(msg.tenant, msg.output_tokens)
        if msg.attained is not None:
            tenant = self._tenants.get(msg.tenant)
            target = tenant.contract.attainment if tenant else 0.99
            self._margins.setdefault(msg.tenant, rules.Margin(target)).observe(msg.attained)
        decision = self._decided.get(msg.request)
        if decision is not None and decision.predicted_ttft_s and msg.ttft_s:
            self._metrics.predicted(predicted_s=decision.predicted_ttft_s, measured_s=msg.ttft_s)

    def _heard_live(self, live: Live, ctx: Context) -> None:
        """What a gateway has under way: count what we do not know (after a restart of ours)."""
        for request, tenant, tokens in self._reservations.live(live, self._clock()):
            self._limits.restore(request, tenant, tokens)

    async def _reconcile(self) -> None:
        """Give back what no gateway has any more: its `Settle` was lost, or the gateway died."""
        for request, tenant in self._reservations.abandoned(self._clock()):
            self._log.warning("reservation without a request", request_id=request, tenant=tenant)
            self._limits.cancel(request, tenant)

    # --- questions
    # ----------------------------------------------------------------------------------------------------

    @handles
    def explain(self, msg: Explain, ctx: Context) -> Decision:
        """Limits are looked at, not taken."""
        now = self._clock()
        candidate = _candidate(msg.request, now, committed=True, patience_s=30.0)
        verdict = self._verdict(candidate, now)
        quota = self._limits.quota(msg.request.tenant)
        if isinstance(verdict, rules.Refuse):
            return unattainable(verdict, candidate, quota=quota)
        return Decision(
            outcome="deferred" if isinstance(verdict, rules.Defer) else "admitted",
            reason=verdict.reason.value if isinstance(verdict, rules.Defer) else "",
            predicted_ttft_s=verdict.predicted_ttft_s,
            predicted_tpot_s=verdict.predicted_tpot_s,
            deferred_s=max(0.0, verdict.until_s - now) if isinstance(verdict, rules.Defer) else 0.0,
            quota=quota,
        )

    @handles
    def quota(self, msg: QuotaQuery, ctx: Context) -> Quota:
        return self._limits.quota(msg.tenant) or Quota()


def _candidate(request: Request, arrived: float, *, committed: bool, patience_s: float) -> rules.Candidate:
    return rules.Candidate(
        id=request.id,
        tenant=request.tenant,
        model=request.model,
        tier=request.tier,
        prompt_tokens=len(request.prompt) // 4,
        max_tokens=request.max_tokens,
        arrived_s=arrived,
        ttft_s=request.ttft_s,
        tpot_s=request.tpot_s,
        max_wait_s=patience_s,
        committed=committed,
    )
