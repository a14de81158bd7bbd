"""The admission actor: the tenant's own limits first, then the contract; admit, defer, or refuse with a time to come
back.

A shell: every decision is that of `policies.admission.Admission`, on what this actor has heard. It keeps the messages,
the tenants' limits, the metrics and those who wait for an answer. All of that is soft: after a restart the gateways
tell what is under way, and the ledger what the day used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import inf

import msgspec
import structlog

from actors.addresses import scheduler_of
from actors.admission_facts import AdmissionReporter
from actors.admission_spans import AdmissionSpans
from actors.facts import Telling
from actors.messages import (
    Admit,
    Cancel,
    Decision,
    Explain,
    Keep,
    Live,
    Load,
    Pressed,
    Quota,
    QuotaQuery,
    ReportLive,
    Settle,
    Submit,
    UsageQuery,
    UsageRows,
    WaitingFacts,
)
from actors.refusals import denied, refused, unattainable
from actors.runtime import (
    LEASE_TTL_S,
    Actor,
    ActorError,
    Context,
    DeadlineExceeded,
    Death,
    Lease,
    Node,
    Silence,
    Watch,
    handles,
    heartbeat,
)
from actors.tenant_limits import LimitsBook
from actors.waiting_room import WaitingRoom
from observability.metrics import DecisionMetrics
from observability.tracing import Tracing
from policies import admission as rules
from policies.admission.reasons import Reason
from policies.admission.verdict import candidate_of
from policies.limits import Denied
from policies.overload import Level
from policies.vocabulary import Contract, Request, Tenant, Tier

__all__ = ["AdmissionActor"]

#: Of the time in which an ask must be answered: so long it is held while nothing is decided.
_HELD = 0.8
#: Decisions kept for a gateway that asks again because it did not hear the first answer.
_KEPT_DECISIONS = 8192
#: The reason in the decision of a request that is admitted without its contract.
_RELEGATED = "relegated"
#: A report of load that is older says nothing any more.
_LOAD_STALE_S = 2.0
#: So long the tightest promised pace is kept: the directory may be large.
_PACE_KEPT_S = 1.0
#: Who holds it decides. Two that decide would each grant a tenant its whole limit, and the whole fleet to everybody.
_LEASE = "admission.decides"
#: So long a new admission actor waits to hear of a load, which comes every 100 ms, before it turns anybody away.
_FIRST_LOAD_S = 1.0


class AdmissionActor(Actor):
    """`tenants` is the live directory: name → Tenant, kept fresh by the caller.

    One decides, and holds the lease; others stand by and are not spoken to until it is theirs.
    """

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
        self._spans = AdmissionSpans(tracing)
        self._policy = policy or rules.Policy()
        self._clock = clock
        self._limits = LimitsBook(tenants, clock)
        self._heard_any = asyncio.Event()
        self._decide_from_s = 0.0
        self._core = rules.Admission(
            self._policy,
            seed=seed,
            contract_of=self._contract,
            tightest_tpot_s=self._tightest_pace_s,
            load_stale_s=_LOAD_STALE_S,
        )
        self._reporter = AdmissionReporter(clock)
        self._waiting = WaitingRoom()
        self._deciding: dict[str, asyncio.Task[Decision]] = {}
        self._decided: OrderedDict[str, Decision] = OrderedDict()
        self._told: dict[str, Level] = {}  # by model: the level that schedulers were told
        self._pace: tuple[float, float | None] = (0.0, None)  # until when it is kept; seconds
        self._log = structlog.get_logger()

    # --- life
    # ---------------------------------------------------------------------------------------------------------

    @property
    def core(self) -> rules.Admission:
        """What decides: to look at, not to change."""
        return self._core

    @property
    def deferred(self) -> list[WaitingFacts]:
        """How many wait for an answer."""
        return self._reporter.waiting()

    async def on_start(self, node: Node) -> None:
        silence = Silence(self.role)
        await silence.start(self)
        await self.hold(Lease(node, _LEASE, node.name, ttl_s=LEASE_TTL_S, is_deserted=silence))
        self._decide_from_s = self._clock() + _FIRST_LOAD_S
        await self.listen("scheduler", Load, self._heard_load)
        await self.listen("gateway", Live, self._heard_live)
        await self.listen("gateway", Keep, self._spans.asked)
        await Watch("gateway", on_death=self._gateway_died).start(self)
        await node.publish(self.role, ReportLive())
        self.spawn(self._restore_day())
        self.every(0.02, self._expire)
        self.every(1.0, self._reconcile)
        await Telling(self, self._tell_facts, clock=self._clock).start()
        self.every(1.0, self._remind)
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready", "deferred": len(self._core)})

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

        The decision outlives the ask: a gateway that heard nothing asks again, and gets the same one. It does so every
        second, and is told a little before that it must.

        :raises DeadlineExceeded: not decided yet.
        """
        request_id = msg.request.id
        decided = self._decided.get(request_id)
        if decided is not None:
            return decided
        deciding = self._deciding.get(request_id)
        if deciding is None:
            deciding = self._deciding[request_id] = self.spawn(self._decide(msg))
        remaining_s = ctx.remaining_s
        held_s = None if remaining_s == inf else _HELD * remaining_s
        if not (await asyncio.wait((deciding,), timeout=held_s))[0]:
            raise DeadlineExceeded("not decided yet: ask again")
        return deciding.result()

    async def _decide(self, msg: Admit) -> Decision:
        request = msg.request
        arrived, arrived_ns = self._clock(), self._tracing.now_ns()
        await self._oriented(arrived)
        decision = self._decided.get(request.id) or await self._reserve(msg, arrived)
        tier = Tier(request.tier).name
        if decision.outcome == "admitted":
            self._metrics.decided("admitted", decision.reason, tier=tier, deferred_s=decision.deferred_s)
        else:
            self._metrics.decided(
                "refused",
                decision.reason,
                tier=tier,
                retry_after_s=decision.retry_after_s,
                deferred_s=decision.deferred_s,
            )
        self._reporter.decided(request, decision)
        self._keep(request.id, decision)
        del self._deciding[request.id]
        self._spans.decided(request, decision, since_unix_ns=arrived_ns)
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
        began = time.perf_counter()
        request = msg.request
        quota = self._limits.quota(request.tenant)
        grant = self._limits.reserve(request, best_effort=self._policy.above_rate)
        if grant is None:
            why = f"tenant {request.tenant!r} is not known here yet, or not any more"
            return refused(Reason.unavailable, quota=quota, why=why, retry_after_s=1.0)
        if isinstance(grant, Denied):
            return denied(grant, quota=quota)
        now = self._clock()
        verdict = self._core.arrive(
            request, now, arrived_s=arrived, committed=grant.committed, patience_s=msg.patience_s
        )
        self._metrics.took(time.perf_counter() - began)
        self._answer(self._core.expire(now))
        if isinstance(verdict, rules.Defer):
            self._metrics.decided("deferred", verdict.reason.value, tier=Tier(request.tier).name)
            self._reporter.deferred(request, verdict)
            self._spans.deferred(request, verdict)
            decision = await self._waiting.wait(request.id, gateway=request.gateway)
        else:
            candidate = candidate_of(request, arrived, committed=grant.committed, patience_s=msg.patience_s)
            decision = self._decision(request, candidate, verdict)
        if decision.outcome != "admitted":
            self._limits.cancel(request.id, request.tenant)
        return decision

    def _decision(
        self,
        request: Request,
        candidate: rules.Candidate,
        verdict: rules.Admit | rules.Refuse,
        *,
        deferred_s: float = 0.0,
    ) -> Decision:
        """Submit what is admitted; in words, what is not."""
        quota = self._limits.quota(request.tenant)
        if isinstance(verdict, rules.Refuse):
            return unattainable(verdict, candidate, quota=quota)
        # On the terms of the verdict: the tier that it was admitted at, and the time that is left.
        on_terms = msgspec.structs.replace(
            request,
            tier=verdict.tier,
            ttft_s=verdict.ttft_s,
            tpot_s=verdict.tpot_s,
            worker=verdict.worker,
            expected_outputs=verdict.outputs,
        )
        self.node.tell_soon(scheduler_of(request.model), Submit(request=on_terms))
        return Decision(
            outcome="admitted",
            reason=_RELEGATED if verdict.relegated else "",
            predicted_ttft_s=verdict.predicted_ttft_s,
            predicted_tpot_s=verdict.predicted_tpot_s,
            deferred_s=deferred_s,
            quota=quota,
        )

    def _answer(self, decided: list[rules.Decided]) -> None:
        """Tell those who wait what became of their requests."""
        now = self._clock()
        for one in decided:
            waited = now - one.candidate.arrived_s
            decision = self._decision(one.request, one.candidate, one.verdict, deferred_s=waited)
            self._waiting.answer(one.request.id, decision)

    def _contract(self, tenant: str) -> Contract | None:
        known = self._tenants.get(tenant)
        return None if known is None else known.contract

    def _tightest_pace_s(self) -> float | None:
        """The tightest pace that any tenant was promised: those without a contract leave room for it."""
        now = self._clock()
        if now >= self._pace[0]:
            paces = [tenant.contract.tpot_ms for tenant in self._tenants.values() if tenant.contract.tier != "flex"]
            tightest = min((pace / 1000 for pace in paces if pace is not None), default=None)
            self._pace = (now + _PACE_KEPT_S, tightest)
        return self._pace[1]

    async def _expire(self) -> None:
        self._answer(self._core.expire(self._clock()))

    @handles
    def cancel(self, msg: Cancel, ctx: Context) -> None:
        """The client left while its request waited here, or before its gateway heard the decision."""
        left = refused(Reason.cancelled, quota=None, why="its client left")
        tenant = self._core.cancel(msg.request, self._clock())
        self._waiting.answer(msg.request, left)
        self._keep(msg.request, left)  # where nobody has looked at it yet, nobody needs to
        if tenant is not None:
            self._limits.cancel(msg.request, tenant)

    def _gateway_died(self, death: Death) -> None:
        """What waits for it is wanted by nobody: admitted later, it would be computed in vain, and settled without ever
        having been written ahead. One that was only silent hears that it can come back.
        """
        for request_id in self._waiting.of_gateway(death.instance):
            self._core.cancel(request_id, self._clock())
            why = "its gateway was not heard for a while"
            gone = refused(Reason.unavailable, quota=None, why=why, retry_after_s=1.0)
            self._waiting.answer(request_id, gone)

    # --- what becomes of the admitted
    # ---------------------------------------------------------------------------------

    def _heard_load(self, load: Load, ctx: Context) -> None:
        now = self._clock()
        self._heard_any.set()
        self._core.report(load.model, load.workers, now)
        self._answer([*self._core.reexamine(load.model, now), *self._core.expire(now)])
        if self._core.level(load.model) is not self._told.get(load.model, Level.calm):
            self.spawn(self._tell_level(load.model))

    @handles
    def settle(self, msg: Settle, ctx: Context) -> None:
        self._limits.settle(msg.request, msg.tenant, msg.prompt_tokens + msg.output_tokens)
        self._core.settled(
            msg.request,
            msg.tenant,
            outputs=msg.output_tokens,
            is_whole=msg.is_whole,
            ttft_kept=msg.ttft_kept,
            tpot_kept=msg.tpot_kept,
            now=self._clock(),
        )
        self._reporter.settled(msg)
        decision = self._decided.get(msg.request)
        if decision is not None and decision.predicted_ttft_s and msg.ttft_s:
            self._metrics.predicted(predicted_s=decision.predicted_ttft_s, measured_s=msg.ttft_s)

    def _heard_live(self, live: Live, ctx: Context) -> None:
        """What a gateway has under way: count what we do not know (after a restart of ours)."""
        entries = zip(live.requests, live.tenants, live.tokens, strict=True)
        for request, tenant, tokens in self._core.live(entries, self._clock()):
            self._limits.restore(request, tenant, tokens)

    async def _tell_level(self, model: str) -> None:
        level = self._told[model] = self._core.level(model)
        await self.node.publish(self.role, Pressed(model=model, level=level))

    async def _remind(self) -> None:
        """Tell again what is above calm: a message may be lost, and a scheduler be new."""
        for model, level in list(self._told.items()):
            if level is not Level.calm:
                await self._tell_level(model)

    async def _reconcile(self) -> None:
        """Give back what no gateway has any more: its `Settle` was lost, or the gateway died."""
        for request, tenant in self._core.abandoned(self._clock()):
            self._log.warning("reservation without a request", request_id=request, tenant=tenant)
            self._limits.cancel(request, tenant)

    # --- questions
    # ----------------------------------------------------------------------------------------------------

    @handles
    def explain(self, msg: Explain, ctx: Context) -> Decision:
        """Limits are looked at, not taken."""
        now = self._clock()
        verdict = self._core.explain(msg.request, now)
        quota = self._limits.quota(msg.request.tenant)
        if isinstance(verdict, rules.Refuse):
            return unattainable(verdict, candidate_of(msg.request, now), quota=quota)
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

    async def _tell_facts(self, whole: bool) -> None:
        await self.node.publish(self.role, await self._reporter.report(whole=whole))
