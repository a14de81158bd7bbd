"""From what is known of the stack at a moment to a frame: pure, and the same for all viewers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from actors.messages import AdmissionFacts, SchedulerFacts, TenantFacts, WorkerFacts
from gateway.live.frame import Frame, KvRow, Promise, Promised, QueueRow, RunningRow, Slack, TenantRow, WorkerRow
from gateway.live.heard import milliseconds
from gateway.stack_view import Heartbeat
from policies.vocabulary import Tenant, Tier

__all__ = ["merged_frame"]

#: Running requests in a frame, at most.
MOST_RUNNING = 64
#: Tenants in a frame, at most: of more, those with the most decisions of late.
MOST_TENANTS = 256


def merged_frame(
    *,
    at: float,
    gateway: str,
    models: Collection[str],
    tenants: Iterable[Tenant],
    schedulers: Sequence[SchedulerFacts],
    admissions: Sequence[AdmissionFacts],
    heartbeats: Sequence[Heartbeat],
    processes: Sequence[dict[str, object]],
) -> Frame:
    """A frame without steps and decisions. `at` is unix seconds."""
    return Frame(
        at=at,
        gateway=gateway,
        full=False,
        models=sorted(models),
        tenants=_tenants(tenants, schedulers, admissions),
        decisions=[],
        steps=[],
        kv=[
            KvRow(model=facts.model, worker=worker.worker, states=worker.blocks, owners=worker.view.owners)
            for facts, worker in _workers(schedulers)
        ],
        queue=_queue(schedulers, admissions),
        running=_running(schedulers),
        workers=_worker_rows(schedulers, heartbeats),
        processes=list(processes),
    )


def _workers(schedulers: Sequence[SchedulerFacts]) -> list[tuple[SchedulerFacts, WorkerFacts]]:
    return [(facts, worker) for facts in schedulers for worker in sorted(facts.workers, key=lambda it: it.worker)]


# --- tenants


def _tenants(
    tenants: Iterable[Tenant], schedulers: Sequence[SchedulerFacts], admissions: Sequence[AdmissionFacts]
) -> list[TenantRow]:
    told: dict[str, TenantFacts] = {}
    for facts in admissions:
        for one in facts.tenants:
            told[one.tenant] = _both(told[one.tenant], one) if one.tenant in told else one
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    served: dict[str, int] = {}
    for scheduler in schedulers:
        _add(served, scheduler.served_tokens)
        for tenant, _ in scheduler.unplaced:
            _add(waiting, {tenant: 1})
        for worker in scheduler.workers:
            _add(running, worker.view.running)
            _add(waiting, worker.view.waiting)
    for facts in admissions:
        for group in facts.waiting:
            _add(waiting, {group.tenant: group.count})
    total = sum(served.values())
    return [
        _tenant_row(
            tenant,
            told.get(tenant.name),
            running=running.get(tenant.name, 0),
            waiting=waiting.get(tenant.name, 0),
            service_share=round(served.get(tenant.name, 0) / total, 4) if total else None,
        )
        for tenant in _shown(tenants, told)
    ]


def _shown(tenants: Iterable[Tenant], told: dict[str, TenantFacts]) -> list[Tenant]:
    all_of_them = list(tenants)
    if len(all_of_them) <= MOST_TENANTS:
        return all_of_them

    def decisions(tenant: Tenant) -> int:
        facts = told.get(tenant.name)
        return 0 if facts is None else facts.admitted + sum(facts.refused.values())

    busiest = sorted(all_of_them, key=decisions, reverse=True)[:MOST_TENANTS]
    return sorted(busiest, key=lambda tenant: tenant.name)


def _tenant_row(
    tenant: Tenant, facts: TenantFacts | None, *, running: int, waiting: int, service_share: float | None
) -> TenantRow:
    contract = tenant.contract
    facts = facts or TenantFacts(tenant.name, 0, 0, {}, (0, 0, None, None), (0, 0, None, None), [None] * 60)
    ttft, tpot = _promise(facts.ttft), _promise(facts.tpot)
    shares = [
        promise.share
        for promise, promised in ((ttft, contract.ttft_ms), (tpot, contract.tpot_ms))
        if promised is not None and promise.share is not None
    ]
    return TenantRow(
        name=tenant.name,
        tier=contract.tier,
        weight=contract.weight,
        contract=Promised(
            ttft_ms=contract.ttft_ms,
            ttft_per_1k_ms=contract.ttft_per_1k_ms,
            tpot_ms=contract.tpot_ms,
            attainment=contract.attainment,
        ),
        ttft=ttft,
        tpot=tpot,
        kept=min(shares) >= contract.attainment if shares else None,
        running=running,
        waiting=waiting,
        admitted=facts.admitted,
        deferred=facts.deferred,
        refused=facts.refused,
        service_share=service_share,
        history=facts.history,
    )


def _promise(told: tuple[int, int, float | None, float | None]) -> Promise:
    judged, kept, p50_s, p95_s = told
    return Promise(
        judged=judged,
        kept=kept,
        share=round(kept / judged, 5) if judged else None,
        p50_ms=milliseconds(p50_s),
        p95_ms=milliseconds(p95_s),
    )


def _both(one: TenantFacts, other: TenantFacts) -> TenantFacts:
    """A tenant of whom two admission actors tell: counts add up, and the worse is shown of what does not."""
    refused = dict(one.refused)
    _add(refused, other.refused)
    return TenantFacts(
        one.tenant,
        one.admitted + other.admitted,
        one.deferred + other.deferred,
        refused,
        _both_kept(one.ttft, other.ttft),
        _both_kept(one.tpot, other.tpot),
        [
            second if first is None else first if second is None else min(first, second)
            for first, second in zip(one.history, other.history, strict=True)
        ],
    )


def _both_kept(
    one: tuple[int, int, float | None, float | None], other: tuple[int, int, float | None, float | None]
) -> tuple[int, int, float | None, float | None]:
    median = max((value for value in (one[2], other[2]) if value is not None), default=None)
    late = max((value for value in (one[3], other[3]) if value is not None), default=None)
    return one[0] + other[0], one[1] + other[1], median, late


def _add(sums: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        sums[name] = sums.get(name, 0) + count


# --- who waits, and who runs


def _queue(schedulers: Sequence[SchedulerFacts], admissions: Sequence[AdmissionFacts]) -> list[QueueRow]:
    waiting: dict[tuple[str, int], int] = {}
    slacks: dict[tuple[str, int], list[tuple[float, float]]] = {}  # (slack, how many it stands for)
    for facts in schedulers:
        for worker in facts.workers:
            for tier in worker.view.queue:
                at = facts.model, tier.tier
                waiting[at] = waiting.get(at, 0) + tier.waiting
                share = tier.promised / max(1, len(tier.slacks_s))
                slacks.setdefault(at, []).extend((slack, share) for slack in tier.slacks_s)
        for _, unplaced in facts.unplaced:
            at = facts.model, unplaced
            waiting[at] = waiting.get(at, 0) + 1
    for admission in admissions:
        for group in admission.waiting:
            at = group.model, group.tier
            waiting[at] = waiting.get(at, 0) + group.count
            share = group.promised / max(1, len(group.slacks_s))
            slacks.setdefault(at, []).extend((slack, share) for slack in group.slacks_s)
    return [
        QueueRow(model=model, tier=Tier(tier).name, waiting=count, slack_ms=_slack(slacks.get((model, tier), [])))
        for (model, tier), count in sorted(waiting.items())
    ]


def _slack(weighed: list[tuple[float, float]]) -> Slack:
    if not weighed:
        return Slack()
    weighed.sort()
    half, seen = sum(weight for _, weight in weighed) / 2, 0.0
    median = weighed[-1][0]
    for slack, weight in weighed:
        seen += weight
        if seen >= half:
            median = slack
            break
    return Slack(min=milliseconds(weighed[0][0]), p50=milliseconds(median))


def _running(schedulers: Sequence[SchedulerFacts]) -> list[RunningRow]:
    rows = [
        RunningRow(
            request=row.request,
            tenant=row.tenant,
            tier=Tier(row.tier).name,
            model=facts.model,
            worker=worker.worker,
            phase=row.phase,
            prompt_tokens=row.prompt_tokens,
            computed=row.computed,
            generated=row.generated,
            slack_ms=milliseconds(row.slack_s),
        )
        for facts, worker in _workers(schedulers)
        for row in worker.view.rows
    ]
    rows.sort(key=lambda row: (row.slack_ms is None, row.slack_ms or 0.0))
    return rows[:MOST_RUNNING]


# --- workers


def _worker_rows(schedulers: Sequence[SchedulerFacts], heartbeats: Sequence[Heartbeat]) -> list[WorkerRow]:
    """Those that beat their hearts lately, and those that a scheduler still holds attached."""
    attached = {worker.worker: (facts.model, worker) for facts, worker in _workers(schedulers)}
    beating = {beat.instance: beat for beat in heartbeats if beat.role == "worker"}
    rows = []
    for name in sorted({*attached, *beating}):
        model, worker = attached.get(name, (None, None))
        beat = beating.get(name)
        rows.append(
            WorkerRow(
                model=model or (beat.model if beat is not None else None),
                worker=name,
                instance=name,
                epoch=beat.epoch if beat is not None else worker.epoch if worker is not None else None,
                heartbeat_age_ms=None if beat is None else milliseconds(beat.age_s),
                state="silent" if beat is None else beat.state,
                steps_per_s=None if worker is None else round(worker.steps_per_s, 2),
                rows=None if worker is None else worker.slots - worker.free_slots,
                slots=None if worker is None else worker.slots,
                device=None if worker is None else worker.device,
            )
        )
    return rows
