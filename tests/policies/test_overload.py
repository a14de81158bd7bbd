"""The overload ladder: which level when, and that it never flaps."""

from __future__ import annotations

import pytest
from door import request
from harness import Harness, make_request, worker_spec
from hypothesis import given
from hypothesis import strategies as st
from worker_sim import COEFFICIENTS

from policies.admission import Admission, Admit, Policy, Refuse
from policies.config import SchedulerConfig
from policies.events import Preempted
from policies.overload import Ladder, Level, Rungs, pressure, under
from policies.vocabulary import RequestLoad, Tier, WorkerLoad


def load(requests: list[RequestLoad], *, blocks: int = 1000) -> WorkerLoad:
    return WorkerLoad("w", "m", blocks, blocks, 64, 64, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, requests)


def row(tier: int, context: int) -> RequestLoad:
    return RequestLoad(f"r{tier}", tier, 1, context, 5, 100, None, None, 0.0)


def test_the_ladder_is_climbed_and_left_rung_by_rung() -> None:
    """A dwell each, up while the pressure stands, down when it is gone."""
    ladder = Ladder(Rungs(dwell_s=1.0))
    up = [ladder.level(now, 5.0) for now in range(7)]
    assert up == [1, 2, 3, 4, 5, 5, 5]
    assert [ladder.level(10 + now, 0.0) for now in range(6)] == [4, 3, 2, 1, 0, 0]


def test_a_rung_is_left_well_below_where_it_is_entered() -> None:
    """Between both thresholds the level stays, whichever way it came."""
    ladder = Ladder(Rungs(enter=(0.5, 0.6, 0.7, 0.8, 0.9), gap=0.2, dwell_s=1.0))
    assert ladder.level(0.0, 0.4) is Level.calm
    assert ladder.level(1.0, 0.5) is Level.shrink
    assert ladder.level(3.0, 0.35) is Level.shrink
    assert ladder.level(5.0, 0.29) is Level.calm
    assert ladder.level(7.0, 0.49) is Level.calm


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1.5)), max_size=60), st.floats(0.1, 5))
def test_it_never_flaps(signal: list[tuple[float, float]], dwell_s: float) -> None:
    """Whatever the signal: one level at a time, and never two changes within a dwell."""
    ladder = Ladder(Rungs(dwell_s=dwell_s))
    now, level, changed = 0.0, Level.calm, float("-inf")
    for later, value in signal:
        now += later
        found = ladder.level(now, value)
        if found is not level:
            assert abs(found - level) == 1
            assert now - changed >= dwell_s
            level, changed = found, now


@pytest.mark.parametrize("rungs", [Rungs(enter=(0.5, 0.5, 0.7, 0.8, 0.9)), Rungs(gap=0.0), Rungs(dwell_s=0.0)])
def test_thresholds_that_cannot_work_are_refused(rungs: Rungs) -> None:
    """With what would be right."""
    with pytest.raises(ValueError, match="must rise"):
        Ladder(rungs)


def test_pressure_is_of_what_has_a_contract() -> None:
    """Requests without one fill the device and press nobody; prompts press by the tightest promise."""
    assert pressure([], 1.0) == 0.0
    assert pressure([load([row(2, 15_000)])], 1.0) == 0.0
    assert pressure([load([row(0, 7_999)])], None) == pytest.approx(0.5)
    assert pressure([load([row(0, 15_999)]), load([])], None) == 0.0, "there is room on the other"
    queue = [RequestLoad(str(i), 0, 2000, 0, 0, 10, 0.5, None, 0.0) for i in range(4)]
    assert pressure([load(queue)], 0.4) == pytest.approx(2 * pressure([load(queue)], 0.8))


def test_a_scheduler_gives_up_rows_first_and_copies_ahead_last() -> None:
    """By its options alone."""
    config = SchedulerConfig()
    assert under(Level.calm, config) == config
    assert under(Level.refuse, config).flex_slots == 0.75
    assert under(Level.shrink, SchedulerConfig(flex_slots=0.5)).flex_slots == 0.5
    assert under(Level.refuse, config).offload_share == 0.0
    assert under(Level.offload, config).offload_share == 0.2


def pressed(level: Level, *, now: float = 100.0, **figures: object) -> Admission:
    """An admission that has come to that level under prompts with contracts."""
    admission = Admission(Policy(ladder=Rungs(dwell_s=0.1), **figures))  # type: ignore[arg-type]
    start = now - 10.0
    share = 0.0 if level is Level.calm else Rungs().enter[level - 1] + 0.01
    for step in range(50):
        admission.report("m", [load([row(0, int(share * 16_000))])], start + step * 0.2)
    assert admission.level("m") is level
    return admission


def test_from_defer_on_best_effort_waits_at_the_door() -> None:
    """It starts when it could at once; before, a short wait was left to the worker's own queue."""
    rows = [RequestLoad(f"f{i}", 2, 1, 16, 5, 5, None, None, 0.0) for i in range(63)]
    flex = request("f", tier=2, ttft_s=None, tpot_s=None)
    outcomes = []
    for level, context in ((Level.calm, 8000), (Level.defer, 11_500)):
        admission = pressed(level)
        admission.report("m", [load([*rows, row(0, context)])], 100.0)
        outcomes.append(type(admission.arrive(flex, 100.0)).__name__)
    assert outcomes == ["Admit", "Defer"]


def test_from_refuse_on_nothing_comes_in_without_a_contract() -> None:
    """Neither flex, nor what is above its rate, nor what would be relegated; contracts do."""
    flex = request("f", tier=2, ttft_s=None, tpot_s=None)
    assert isinstance(pressed(Level.relegate).arrive(flex, 100.0), Admit)
    admission = pressed(Level.refuse, relegate=True)
    refusal = admission.arrive(flex, 100.0)
    assert isinstance(refusal, Refuse)
    assert refusal.retry_after_s is not None
    assert isinstance(admission.arrive(request("u"), 100.0, committed=False), Refuse)
    assert isinstance(admission.arrive(request("g", prompt=16), 100.0), Admit)


def test_under_pressure_nothing_without_a_contract_starts_in_the_last_quarter_of_the_slots() -> None:
    """Who has a contract finds a slot; calm again, the rest starts too."""
    h = Harness(worker_spec(blocks=60, slots=4), SchedulerConfig())
    h.core.relieve(Level.shrink)
    for name in ("f1", "f2", "f3", "f4"):
        h.submit(make_request(name, [1], 40, tier=Tier.flex))
    h.submit(make_request("g", [2], 40, tier=Tier.priority))
    h.plan()
    assert h.core.census().running == 3, "two of the best effort, and who has a contract"
    h.core.relieve(Level.calm)
    h.now += 0.01
    h.plan()
    assert h.core.census().running == 4
    h.execute()
    h.run()
    h.check_end()


def test_at_the_top_blocks_are_copied_ahead_and_below_it_not_any_more() -> None:
    """Two rows outgrow a small pool; only at the last level does a step carry copies before somebody has to go."""
    copied = {}
    for level in (Level.refuse, Level.offload):
        h = Harness(worker_spec(blocks=10, host_blocks=40), SchedulerConfig(watermark=0.0, preemption="swap"))
        h.core.relieve(level)
        h.submit(make_request("old", [1] * 33, 70))
        h.submit(make_request("new", [2] * 33, 70))
        ahead = 0
        while not any(isinstance(event, Preempted) for event in h.events) and h.core.requests():
            h.now += 0.01
            step = h.plan()
            ahead += 0 if step is None else len(step.swap_out)
            h.execute()
            h.complete()
        copied[level] = ahead
    assert copied[Level.refuse] < copied[Level.offload]
