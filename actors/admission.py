"""The admission actor: the tenant's own limits first, then the contract; admit, defer, or refuse with a time to come
back.

Every decision is a pure function of policies/ over what this actor has heard: the tenants' bucket, the schedulers'
loads, its own
reservations. All of that is soft: after a restart the gateways tell what is under way, and the ledger what the day
has used.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import structlog

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
from actors.reservations import Reservations
from actors.runtime import Actor, ActorError, Context, Node, handles, heartbeat
from observability.metrics import DecisionMetrics
from observability.tracing import Tracing
from policies import admission as rules
from policies.deferred import Deferred, DeferredQueue
from policies.forecast import OutputHistory
from policies.limits import Denied, TenantLimits
from policies.reasons import Reason
from policies.vocabulary import Request, Tenant, Tier, WorkerLoad

__all__ = ["AdmissionActor"]

#: Decisions kept for a gateway that asks again because it did not hear the first answer.
_KEPT_DECISIONS = 8192
#: Deferred requests looked at again per report of load: each costs a forecast.
_LOOKED_AT = 64
#: A report of load that is older says nothing any more.
_LOAD_STALE_S = 2.0


class AdmissionActor(Actor):
    """`tenants` is the live directory: name → Tenant, kept fresh by the caller."""

    role = "admission"
    mailbox = 4096

    def __init__(
        self,
        *,
        tenants: dict[str, Tenant],
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
        self._limits: dict[str, TenantLimits] = {}
        self._loads: dict[str, list[WorkerLoad]] = {}
        self._load_at: dict[str, float] = {}
        self._reservations = Reservations()
        self._deferred: DeferredQueue[_Waiting] = DeferredQueue(size=512)
        self._answers: dict[str, asyncio.Future[Decision]] = {}  # of the deferred
        self._deciding: dict[str, asyncio.Task[Decision]] = {}
        self._decided: OrderedDict[str, Decision] = OrderedDict()
        self._margins: dict[str, rules.Margin] = {}
        self._history = OutputHistory()
        self._log = structlog.get_logger()

    # --- life
    # ---------------------------------------------------------------------------------------------------------

    async def on_start(self, node: Node) -> None:
        await self.listen("scheduler", Load, self._heard_load)
        await self.listen("gateway", Live, self._heard_live)
        await node.publish(self.role, ReportLive())
        self.spawn(self._restore_day())
        self.every(0.02, self._expire)
        self.every(1.0, self._reconcile)
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready", "deferred": len(self._deferred)})

    async def _restore_day(self) -> None:
        """What the day's budgets have used, from the ledger; asked again until it answers."""
        day = _utc_day()
        query = UsageQuery(since=time.strftime("%Y-%m-%d", time.gmtime()), limit=100_000)
        while True:
            try:
                rows = await self.node.ask("ledger.any", query, want=UsageRows, timeout_s=2.0)
                break
            except ActorError:
                await asyncio.sleep(1.0)
        for row in rows.rows:
            limits = self._limits_of(row.tenant)
            if limits is not None:
                limits.restore_day(row.prompt_tokens + row.output_tokens, day)

    # --- asking
    # -------------------------------------------------------------------------------------------------------

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
        decision = await self._reserve(msg, arrived)
        self._decided[request.id] = decision
        if len(self._decided) > _KEPT_DECISIONS:
            self._decided.popitem(last=False)
        del self._deciding[request.id]
        self._record(request, decision, arrived_ns)
        return decision

    async def _reserve(self, msg: Admit, arrived: float) -> Decision:
        """Take what it could use from the tenant's limits, then see about its contract; all goes back on a
        refusal."""
        request = msg.request
        limits = self._limits_of(request.tenant)
        if limits is None:
            return self._refused(request, f"tenant {request.tenant!r} is unknown", Reason.no_worker, retry_after_s=1.0)
        tokens = len(request.prompt) // 4 + request.max_tokens
        grant = limits.reserve(request.id, tokens, arrived, _utc_day(), day_ends_in_s=_day_ends_in_s())
        if isinstance(grant, Denied):
            return self._denied(request, grant)
        candidate = self._candidate(request, arrived, committed=grant.committed, patience_s=msg.patience_s)
        decision = self._examine(request, candidate) or await self._wait(request)
        if decision.outcome != "admitted":
            limits.cancel(request.id, self._clock())
        return decision

    def _candidate(self, request: Request, arrived: float, *, committed: bool, patience_s: float) -> rules.Candidate:
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

    def _verdict(self, candidate: rules.Candidate, now: float) -> rules.Verdict:
        fresh = now - self._load_at.get(candidate.model, -_LOAD_STALE_S) < _LOAD_STALE_S
        margin = self._margins.get(candidate.tenant)
        return rules.decide(
            candidate,
            self._loads[candidate.model] if fresh else [],
            [*self._reservations.pending(candidate.model), *self._ahead(candidate)],
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

    def _examine(self, request: Request, candidate: rules.Candidate) -> Decision | None:
        """Decide now. None: it waits in the queue of the deferred."""
        now = self._clock()
        verdict = self._verdict(candidate, now)
        if isinstance(verdict, rules.Admit):
            self._submit(request, verdict, now)
            return Decision(
                outcome="admitted",
                predicted_ttft_s=verdict.predicted_ttft_s,
                predicted_tpot_s=verdict.predicted_tpot_s,
                deferred_s=now - candidate.arrived_s if request.id in self._answers else 0.0,
                quota=self._quota(request.tenant),
            )
        if isinstance(verdict, rules.Refuse):
            return self._refused(
                request,
                _explain(verdict, candidate),
                verdict.reason,
                measured=verdict.measured,
                threshold=verdict.threshold,
                retry_after_s=verdict.retry_after_s,
                predicted_ttft_s=verdict.predicted_ttft_s,
            )
        self._defer(request, candidate, verdict)
        return None

    def _defer(self, request: Request, candidate: rules.Candidate, verdict: rules.Defer) -> None:
        """Put it into the queue, or change its terms there. Who has no place for it is answered at once."""
        if request.id not in self._answers:
            self._answers[request.id] = asyncio.get_running_loop().create_future()
            self._metrics.decided("deferred", verdict.reason.value)
        out = self._deferred.add(
            Deferred(
                id=request.id,
                tenant=request.tenant,
                tier=candidate.tier,
                deadline_s=verdict.deadline_s,
                until_s=verdict.until_s,
                what=_Waiting(request, candidate, verdict.worker),
            )
        )
        if out is not None:
            retry = max(self._policy.retry_floor_s, out.until_s - self._clock())
            why = (
                f"{len(self._deferred)} requests wait already, {self._deferred.held(out.tenant)} of them of this tenant"
            )
            self._answer(out.id, self._refused(out.what.request, why, Reason.queue_full, retry_after_s=retry))

    def _answer(self, request_id: str, decision: Decision) -> None:
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():
            answer.set_result(decision)

    async def _wait(self, request: Request) -> Decision:
        try:
            return await self._answers[request.id]
        finally:
            del self._answers[request.id]
            self._deferred.remove(request.id)

    def _ahead(self, candidate: rules.Candidate) -> list[rules.Reservation]:
        """The deferred that a newcomer must not overtake."""
        if candidate.id in self._answers or not len(self._deferred):
            return []
        return [
            entry.what.reservation()
            for entry in self._due()
            if entry.tier <= candidate.tier and entry.what.candidate.model == candidate.model
        ]

    def _submit(self, request: Request, verdict: rules.Admit, now: float) -> None:
        admitted = rules.Reservation(
            id=request.id,
            worker=verdict.worker,
            tier=verdict.tier,
            prompt_tokens=len(request.prompt) // 4,
            max_tokens=request.max_tokens,
            deadline_s=None if verdict.ttft_s is None else now + verdict.ttft_s,
            tpot_s=verdict.tpot_s,
        )
        self._reservations.add(request, admitted, now)
        self._metrics.decided("admitted")
        submitted = Submit(request=_on_terms(request, verdict))
        self.node.tell_soon(f"scheduler.{request.model}", submitted)

    # --- refusing
    # -----------------------------------------------------------------------------------------------------

    def _denied(self, request: Request, denied: Denied) -> Decision:
        why = f"{denied.reason.value}: {denied.measured:.0f} of {denied.limit:.0f}"
        return self._refused(
            request,
            why,
            denied.reason,
            measured=denied.measured,
            threshold=denied.limit,
            retry_after_s=denied.retry_after_s,
        )

    def _refused(
        self,
        request: Request,
        why: str,
        reason: Reason,
        *,
        measured: float = 0.0,
        threshold: float = 0.0,
        retry_after_s: float | None = None,
        predicted_ttft_s: float | None = None,
    ) -> Decision:
        self._metrics.decided("refused", reason.value, retry_after_s=retry_after_s)
        return Decision(
            outcome="refused",
            reason=reason.value,
            message=why,
            measured=measured,
            threshold=threshold,
            retry_after_s=retry_after_s,
            predicted_ttft_s=predicted_ttft_s,
            quota=self._quota(request.tenant),
        )

    # --- what changes
    # -------------------------------------------------------------------------------------------------

    def _heard_load(self, load: Load, ctx: Context) -> None:
        now = self._clock()
        self._loads[load.model] = load.workers
        self._load_at[load.model] = now
        self._reservations.reported(load.model, load.workers, now)
        self._reexamine(load.model)

    def _reexamine(self, model: str) -> None:
        """Look at the deferred again, in their order, up to the first that has to wait on."""
        for entry in self._due()[:_LOOKED_AT]:
            if entry.what.candidate.model == model:
                decision = self._examine(entry.what.request, entry.what.candidate)
                if decision is None:
                    return
                self._deferred.remove(entry.id)
                self._answer(entry.id, decision)

    def _due(self) -> list[Deferred[_Waiting]]:
        """The deferred in their order. Those whose time is over are refused here."""
        now = self._clock()
        due = self._deferred.due(now)
        for entry in due.expired:
            candidate = entry.what.candidate
            waited = now - candidate.arrived_s
            decision = self._refused(
                entry.what.request,
                f"it waited {waited:.2f} s and can no longer start in time",
                Reason.deadline_exceeded,
                measured=waited,
                threshold=candidate.ttft_s or candidate.max_wait_s,
                retry_after_s=max(self._policy.retry_floor_s, entry.until_s - now),
            )
            self._answer(entry.id, decision)
        return due.order

    async def _expire(self) -> None:
        self._due()

    @handles
    def settle(self, msg: Settle, ctx: Context) -> None:
        now = self._clock()
        limits = self._limits.get(msg.tenant)
        if limits is not None:
            limits.settle(msg.request, msg.prompt_tokens + msg.output_tokens, now)
        self._reservations.remove(msg.request)
        if msg.is_whole:
            self._history.add(msg.tenant, msg.output_tokens)
        if msg.attained is not None:
            tenant = self._tenants.get(msg.tenant)
            target = tenant.contract.attainment if tenant else 0.99
            self._margins.setdefault(msg.tenant, rules.Margin(target)).observe(msg.attained)
        decision = self._decided.get(msg.request)
        if decision is not None and decision.predicted_ttft_s and msg.ttft_s:
            self._metrics.predicted(predicted_s=decision.predicted_ttft_s, measured_s=msg.ttft_s)

    @handles
    def cancel(self, msg: Cancel, ctx: Context) -> None:
        """The client left while its request waited here, or before its gateway heard the decision."""
        self._answer(msg.request, Decision(outcome="refused", reason=Reason.cancelled.value, message="its client left"))
        tenant = self._reservations.remove(msg.request)
        limits = self._limits.get(tenant) if tenant else None
        if limits is not None:
            limits.cancel(msg.request, self._clock())

    def _heard_live(self, live: Live, ctx: Context) -> None:
        """What a gateway has under way: count what we do not know (after a restart of ours)."""
        now, day = self._clock(), _utc_day()
        for request, tenant, tokens in zip(live.requests, live.tenants, live.tokens, strict=True):
            limits = self._limits_of(tenant)
            if limits is not None and not self._reservations.holds(request):
                limits.restore(request, tokens, now, day)
        self._reservations.live(live, now)

    async def _reconcile(self) -> None:
        """Give back what no gateway has any more: its `Settle` was lost, or the gateway died."""
        now = self._clock()
        for request, tenant in self._reservations.abandoned(now):
            self._log.warning("reservation without a request", request_id=request, tenant=tenant)
            limits = self._limits.get(tenant)
            if limits is not None:
                limits.cancel(request, now)

    # --- questions
    # ----------------------------------------------------------------------------------------------------

    @handles
    def explain(self, msg: Explain, ctx: Context) -> Decision:
        """Limits are looked at, not taken."""
        now = self._clock()
        candidate = self._candidate(msg.request, now, committed=True, patience_s=30.0)
        verdict = self._verdict(candidate, now)
        quota = self._quota(msg.request.tenant)
        if isinstance(verdict, rules.Refuse):
            return Decision(
                outcome="refused",
                reason=verdict.reason.value,
                message=_explain(verdict, candidate),
                measured=verdict.measured,
                threshold=verdict.threshold,
                retry_after_s=verdict.retry_after_s,
                predicted_ttft_s=verdict.predicted_ttft_s,
                quota=quota,
            )
        return Decision(
            outcome="admitted" if isinstance(verdict, rules.Admit) else "deferred",
            reason="" if isinstance(verdict, rules.Admit) else verdict.reason.value,
            predicted_ttft_s=verdict.predicted_ttft_s,
            predicted_tpot_s=verdict.predicted_tpot_s,
            deferred_s=0.0 if isinstance(verdict, rules.Admit) else max(0.0, verdict.until_s - now),
            quota=quota,
        )

    @handles
    def quota(self, msg: QuotaQuery, ctx: Context) -> Quota:
        return self._quota(msg.tenant) or Quota()

    def _quota(self, tenant: str) -> Quota | None:
        limits = self._limits_of(tenant)
        if limits is None:
            return None
        now = limits.snapshot(self._clock())
        return Quota(
            requests_limit=now.limit_requests,
            requests_left=now.remaining_requests,
            requests_reset_s=now.reset_requests_s,
            tokens_limit=now.limit_tokens,
            tokens_left=now.remaining_tokens,
            tokens_reset_s=now.reset_tokens_s,
        )

    def _limits_of(self, name: str) -> TenantLimits | None:
        """The state of a tenant's limits, in step with its entry in the directory; None if there is none."""
        tenant = self._tenants.get(name)
        if tenant is None:
            return None
        state = self._limits.get(name)
        if state is None:
            state = self._limits[name] = TenantLimits(tenant.limits, self._clock())
        elif state.limits is not tenant.limits:
            state.update(tenant.limits, self._clock())
        return state

    def _record(self, request: Request, decision: Decision, since_ns: int) -> None:
        attributes: dict[str, str | float] = {
            "headgate.tenant": request.tenant,
            "headgate.tier": Tier(request.tier).name,
            "headgate.decision": "deferred"
            if decision.outcome == "admitted" and decision.deferred_s
            else decision.outcome,
        }
        optional = {
            "headgate.deadline_ms": request.ttft_s,
            "headgate.predicted_ttft_ms": decision.predicted_ttft_s,
            "headgate.retry_after_ms": decision.retry_after_s,
        }
        attributes.update({name: round(1000 * value, 2) for name, value in optional.items() if value is not None})
        if decision.reason:
            attributes["headgate.reason"] = decision.reason
        self._tracing.record(
            "admission",
            request_id=request.id,
            parent_traceparent=request.traceparent,
            start_unix_ns=since_ns,
            end_unix_ns=time.time_ns(),
            attributes=attributes,
        )


class _Waiting:
    """A deferred request, on the worker that would have it first."""

    __slots__ = ("candidate", "request", "worker")

    def __init__(self, request: Request, candidate: rules.Candidate, worker: str) -> None:
        self.request, self.candidate, self.worker = request, candidate, worker

    def reservation(self) -> rules.Reservation:
        """Its claim, as a newcomer's forecast must see it."""
        candidate = self.candidate
        return rules.Reservation(
            id=candidate.id,
            worker=self.worker,
            tier=candidate.tier,
            prompt_tokens=candidate.prompt_tokens,
            max_tokens=candidate.max_tokens,
            deadline_s=None if candidate.ttft_s is None else candidate.arrived_s + candidate.ttft_s,
            tpot_s=candidate.tpot_s,
        )


def _on_terms(request: Request, verdict: rules.Admit) -> Request:
    """The request as it is submitted: the tier that its admission was granted at, and the time that is left."""
    return msgspec.structs.replace(request, tier=verdict.tier, ttft_s=verdict.ttft_s, tpot_s=verdict.tpot_s)


def _explain(refusal: rules.Refuse, candidate: rules.Candidate) -> str:
    """For the client: the measured value and the threshold, in words."""
    promised = candidate.ttft_s is not None and candidate.committed and candidate.tier != Tier.flex
    words = {
        Reason.ttft_unattainable: "the first token would come after {m:.3f} s, the contract allows {t:.3f} s"
        if promised
        else "it would have to wait {m:.2f} s to start, it may wait {t:.2f} s",
        Reason.tpot_unattainable: "tokens would come every {m:.4f} s, the tightest contract allows {t:.4f} s",
        Reason.kv_exhausted: "the KV cache would peak at {m:.0f} blocks, {t:.0f} may be used",
        Reason.deadline_exceeded: "it waited {m:.2f} s of {t:.2f} s and can no longer start in time",
        Reason.no_worker: "no worker serves this model now",
    }.get(refusal.reason, "{m:g} against {t:g}")
    return words.format(m=refusal.measured, t=refusal.threshold)


def _utc_day() -> int:
    return int(time.time() // 86_400)


def _day_ends_in_s() -> float:
    return 86_400 - time.time() % 86_400
