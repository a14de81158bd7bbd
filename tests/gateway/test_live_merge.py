"""Frames say what schedulers, admission, heartbeats and the directory say, put together."""

from __future__ import annotations

from actors.messages import AdmissionFacts, SchedulerFacts, TenantFacts, WaitingFacts, WorkerFacts
from gateway.live.frame import Frame
from gateway.live.merge import MOST_TENANTS, merged_frame
from gateway.stack_view import Heartbeat
from policies.views import CoreView, RowView, TierView
from policies.vocabulary import Contract, Tenant

GOLD = Tenant(name="gold", contract=Contract(tier="priority", ttft_ms=500, tpot_ms=50, attainment=0.9, weight=4))
FREE = Tenant(name="free", contract=Contract(tier="flex"))


def frame(
    *,
    tenants: list[Tenant] | None = None,
    schedulers: list[SchedulerFacts] | None = None,
    admissions: list[AdmissionFacts] | None = None,
    heartbeats: list[Heartbeat] | None = None,
) -> Frame:
    return merged_frame(
        at=1.5,
        gateway="g0",
        models=["m"],
        tenants=tenants if tenants is not None else [FREE, GOLD],
        schedulers=schedulers or [],
        admissions=admissions or [],
        heartbeats=heartbeats or [],
        processes=[{"role": "ledger"}],
    )


def tenant_facts(
    name: str,
    *,
    ttft: tuple[int, int] = (0, 0),
    tpot: tuple[int, int] = (0, 0),
    admitted: int = 0,
    refused: dict[str, int] | None = None,
    history: dict[int, float] | None = None,
) -> TenantFacts:
    periods: list[float | None] = [None] * 60
    for at, share in (history or {}).items():
        periods[at] = share
    return TenantFacts(name, admitted, 0, refused or {}, (*ttft, 0.1, 0.4), (*tpot, 0.02, 0.03), periods)


def worker(name: str, view: CoreView, *, free: int = 1) -> WorkerFacts:
    return WorkerFacts(name, "mock", 7, 4, free, 12.345, {"used": 10, "free": 90, "cached": 5, "host": 0}, view)


def core(
    *,
    rows: list[RowView] | None = None,
    queue: list[TierView] | None = None,
    running: dict[str, int] | None = None,
    waiting: dict[str, int] | None = None,
) -> CoreView:
    return CoreView(rows or [], queue or [], {"gold": 10}, running or {}, waiting or {})


def test_a_frame_of_a_stack_that_tells_nothing_is_whole() -> None:
    """What is not known is None or empty, never absent."""
    empty = frame()
    gold = next(tenant for tenant in empty.tenants if tenant.name == "gold")
    assert (gold.kept, gold.service_share, gold.ttft.share) == (None, None, None)
    assert gold.history == [None] * 60
    assert (empty.queue, empty.running, empty.kv, empty.workers) == ([], [], [], [])
    assert empty.processes == [{"role": "ledger"}]


def test_a_contract_is_kept_if_both_promises_are() -> None:
    """Shares against attainment; a promise of which nothing was judged counts for neither."""
    for ttft, tpot, kept in [
        ((10, 9), (10, 10), True),
        ((10, 9), (10, 8), False),
        ((10, 8), (0, 0), False),
        ((0, 0), (10, 9), True),
        ((0, 0), (0, 0), None),
    ]:
        told = AdmissionFacts(1, [], [tenant_facts("gold", ttft=ttft, tpot=tpot)], [])
        (row,) = frame(tenants=[GOLD], admissions=[told]).tenants
        assert row.kept is kept
    assert (row.ttft.p95_ms, row.tpot.p50_ms) == (400.0, 20.0)


def test_who_has_no_contract_has_none_to_keep() -> None:
    """Whatever was measured."""
    told = AdmissionFacts(1, [], [tenant_facts("free", ttft=(5, 1))], [])
    (row,) = frame(tenants=[FREE], admissions=[told]).tenants
    assert row.kept is None


def test_counts_of_several_tellers_add_up() -> None:
    """Running and waiting over workers, those nobody serves yet, and those admission keeps; shares of all tokens."""
    schedulers = [
        SchedulerFacts(
            "m",
            1,
            [],
            [
                worker("w0", core(running={"gold": 2}, waiting={"free": 1})),
                worker("w1", core(running={"gold": 1, "free": 1})),
            ],
            {"gold": 300, "free": 100},
            [("gold", 0)],
        )
    ]
    admissions = [
        AdmissionFacts(
            1,
            [],
            [tenant_facts("gold", ttft=(4, 4), admitted=5, refused={"overloaded": 1}, history={59: 1.0})],
            [WaitingFacts("gold", "m", 0, 2)],
        ),
        AdmissionFacts(
            1,
            [],
            [tenant_facts("gold", ttft=(4, 2), admitted=1, refused={"overloaded": 2}, history={59: 0.5, 58: 1.0})],
            [],
        ),
    ]
    rows = {row.name: row for row in frame(schedulers=schedulers, admissions=admissions).tenants}
    gold, free = rows["gold"], rows["free"]
    assert (gold.running, gold.waiting, free.running, free.waiting) == (3, 3, 1, 1)
    assert (gold.service_share, free.service_share) == (0.75, 0.25)
    assert (gold.admitted, gold.refused, gold.ttft.judged, gold.ttft.share) == (6, {"overloaded": 3}, 8, 0.75)
    assert gold.history[-2:] == [1.0, 0.5]


def test_the_queue_is_by_tier_with_the_slack_of_all_workers() -> None:
    """The median weighs a sample by how many it stands for."""
    schedulers = [
        SchedulerFacts(
            "m",
            1,
            [],
            [
                worker("w0", core(queue=[TierView(0, 99, 99, [0.1, 0.2, 0.3])])),
                worker("w1", core(queue=[TierView(0, 3, 3, [-0.5, 5.0, 6.0]), TierView(2, 4, 0, [])])),
            ],
            {},
            [("gold", 0)],
        )
    ]
    waiting = [
        AdmissionFacts(1, [], [], [WaitingFacts("free", "m", 2, 6), WaitingFacts("gold", "m", 0, 2, 2, [-0.9, 0.2])])
    ]
    priority, flex = frame(schedulers=schedulers, admissions=waiting).queue
    assert (priority.tier, priority.waiting, priority.slack_ms.min, priority.slack_ms.p50) == (
        "priority",
        105,
        -900.0,
        200.0,
    )
    assert (flex.tier, flex.waiting, flex.slack_ms.min) == ("flex", 10, None)


def test_running_requests_are_the_tightest_of_all_workers() -> None:
    """Those without a promise last."""
    rows = [RowView(f"r{i}", "gold", 0, "decode", 5, 6, 1, slack) for i, slack in enumerate([0.5, None, -0.1])]
    other = [RowView("r9", "free", 2, "prefill", 5, 0, 0, 0.2)]
    schedulers = [SchedulerFacts("m", 1, [], [worker("w0", core(rows=rows)), worker("w1", core(rows=other))], {}, [])]
    running = frame(schedulers=schedulers).running
    assert [(row.request, row.slack_ms) for row in running] == [
        ("r2", -100.0),
        ("r9", 200.0),
        ("r0", 500.0),
        ("r1", None),
    ]
    assert running[1].worker == "w1"


def test_workers_are_those_that_beat_and_those_that_are_attached() -> None:
    """One that fell silent is seen as that; one that no scheduler has taken yet too."""
    beats = [
        Heartbeat("worker", "w0", 7, 0.05, "ready", "m"),
        Heartbeat("worker", "w1", 8, 0.1, "loading", "m"),
        Heartbeat("worker", "w3", 9, 4.0, "silent", "m"),
        Heartbeat("scheduler", "m", 1, 0.1, "ready", "m"),
    ]
    schedulers = [SchedulerFacts("m", 1, [], [worker("w0", core()), worker("w2", core())], {}, [])]
    rows = {row.worker: row for row in frame(schedulers=schedulers, heartbeats=beats).workers}
    assert set(rows) == {"w0", "w1", "w2", "w3"}
    assert (rows["w0"].rows, rows["w0"].slots, rows["w0"].steps_per_s, rows["w0"].heartbeat_age_ms) == (
        3,
        4,
        12.35,
        50.0,
    )
    assert (rows["w1"].state, rows["w1"].rows) == ("loading", None)
    assert (rows["w2"].state, rows["w2"].epoch, rows["w2"].heartbeat_age_ms) == ("silent", 7, None)
    assert rows["w3"].state == "silent"


def test_of_very_many_tenants_the_busiest_are_shown() -> None:
    """By name; a frame must stay small."""
    tenants = [Tenant(name=f"t{i:04}") for i in range(MOST_TENANTS + 50)]
    told = AdmissionFacts(1, [], [tenant_facts(f"t{MOST_TENANTS + 40:04}", admitted=9)], [])
    names = [row.name for row in frame(tenants=tenants, admissions=[told]).tenants]
    assert len(names) == MOST_TENANTS
    assert names == sorted(names)
    assert f"t{MOST_TENANTS + 40:04}" in names
