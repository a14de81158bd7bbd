from __future__ import annotations

import io
import random
import time

import pytest
from rich.console import Console

from policies.vocabulary import Contract, Tenant
from simulator.fairness import jain_index, largest_service_gap, service_over_time
from simulator.metrics import flat, in_contract, measure
from simulator.quantiles import bootstrap_mean, quantile
from simulator.records import Outcome, Result
from simulator.tables import comparison, details


def outcome(
    name: str,
    *,
    tenant: str = "t",
    tier: int = 1,
    arrived_s: float = 0.0,
    decision: str = "admitted",
    scheduled_s: float | None = None,
    first_token_s: float | None = None,
    finished_s: float | None = None,
    ttft_s: float | None = 1.0,
    tpot_s: float | None = 0.1,
    prompt_tokens: int = 100,
    output_tokens: int = 11,
    generated: int | None = None,
    reason: str = "",
    **others: object,
) -> Outcome:
    return Outcome(
        id=name,
        tenant=tenant,
        tier=tier,
        arrived_s=arrived_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        decision=decision,
        reason=reason,
        decided_s=arrived_s,
        scheduled_s=scheduled_s,
        first_token_s=first_token_s,
        finished_s=finished_s,
        generated=output_tokens if generated is None else generated,
        **others,  # type: ignore[arg-type]
    )


def served(name: str, arrived_s: float, ttft_s: float, tpot_s: float, **others: object) -> Outcome:
    first = arrived_s + ttft_s
    return outcome(
        name,
        arrived_s=arrived_s,
        scheduled_s=arrived_s,
        first_token_s=first,
        finished_s=first + 10 * tpot_s,
        **others,  # type: ignore[arg-type]
    )


def result(outcomes: list[Outcome], *, ended_s: float = 20.0) -> Result:
    return Result(
        workload="w",
        policy="p",
        device="d",
        workers=2,
        load=1.5,
        seed=3,
        outcomes=outcomes,
        ended_s=ended_s,
        wall_s=0.5,
        steps=100,
        busy_s=20.0,
        computed_tokens=1000,
        lost_tokens=50,
        swapped_bytes=2_000_000_000,
        step_coverage=0.9,
        step_error=0.02,
    )


def test_attainment_is_of_the_admitted_and_of_the_offered() -> None:
    """Late, slow, refused, shed and unfinished are misses; who was shed had been admitted."""
    metrics = measure(
        result(
            [
                served("in time", 0, 0.5, 0.05),
                served("late", 1, 1.5, 0.05),
                served("slow", 2, 0.5, 0.2),
                outcome("refused", arrived_s=3, decision="refused", reason="ttft_unattainable", generated=0),
                outcome("shed", arrived_s=4, decision="shed", reason="hopeless", generated=0),
                outcome("never", arrived_s=10, generated=0),
            ]
        )
    )
    whole = metrics.contract
    assert (whole.offered, whole.admitted, whole.refused, whole.shed, whole.finished, whole.met) == (6, 5, 1, 1, 3, 1)
    assert whole.attainment_admitted == pytest.approx(1 / 5)
    assert whole.attainment_offered == pytest.approx(1 / 6)
    assert metrics.goodput_rps == pytest.approx(1 / 10)  # over the span of the arrivals
    assert metrics.goodput_tokens_per_s == pytest.approx(11 / 10)
    assert metrics.refusals == {"ttft_unattainable": 1, "hopeless": 1}
    assert metrics.busy_share == pytest.approx(0.5)
    assert metrics.lost_share == pytest.approx(0.05)
    assert metrics.swapped_gb == pytest.approx(2)


def test_who_finished_but_was_cut_off_is_a_miss() -> None:
    """All of the outputs, or nothing."""
    whole = measure(result([served("cut", 0, 0.1, 0.01, generated=5)])).contract
    assert (whole.finished, whole.met) == (1, 0)


def test_a_relegated_request_that_is_in_time_counts_for_the_offered_alone() -> None:
    """It was admitted without its contract, so it cannot make the attainment of the admitted better."""
    whole = measure(
        result([served("late", 0, 2.0, 0.01), served("lucky", 1, 0.1, 0.01, decision="relegated")])
    ).contract
    assert (whole.admitted, whole.relegated) == (1, 1)
    assert whole.attainment_admitted == 0
    assert whole.attainment_offered == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "bound"),
    [
        (outcome("a"), True),
        (outcome("a", tier=2), False),
        (outcome("a", ttft_s=None), True),
        (outcome("a", ttft_s=None, tpot_s=None), False),
        (outcome("a", decision="refused", reason="tokens_per_minute"), False),
        (outcome("a", decision="refused", reason="kv_exhausted"), True),
    ],
)
def test_in_contract_is_a_promise_a_class_and_a_rate(given: Outcome, bound: bool) -> None:
    """Flex, no promise, and what exceeds the tenant's own rate are without a contract."""
    assert in_contract(given) is bound


def test_flex_is_apart() -> None:
    """Finishing is enough there, and it is not in the attainment."""
    metrics = measure(result([_flex()]))
    assert metrics.contract.offered == 0
    assert metrics.contract.attainment_offered is None
    assert (metrics.free.offered, metrics.free.met) == (1, 1)


def _flex() -> Outcome:
    return outcome(
        "f", tier=2, ttft_s=None, tpot_s=None, arrived_s=1, scheduled_s=8.0, first_token_s=9.0, finished_s=19.0
    )


def test_deciles_are_of_the_in_contract_by_prompt_length() -> None:
    """The long ones are seen to be refused."""
    outcomes = [
        outcome(str(n), arrived_s=n, prompt_tokens=n, decision="refused", generated=0)
        if n > 90
        else served(str(n), n, 0.1, 0.01, prompt_tokens=n)
        for n in range(1, 101)
    ]
    deciles = measure(result(outcomes)).deciles
    assert [group.offered for group in deciles] == [10] * 10
    assert [group.name for group in (deciles[0], deciles[-1])] == ["1-10", "91-100"]
    assert [group.attainment_offered for group in deciles] == [1.0] * 9 + [0.0]
    assert flat(measure(result(outcomes)))["worst_decile"] == 0.0


def test_refusals_are_timed() -> None:
    """From the arrival to the decision, and with what they were told."""
    refused = [
        outcome(str(n), arrived_s=float(n), decision="refused", reason="queue_full", retry_after_s=float(n))
        for n in range(101)
    ]
    for n, one in enumerate(refused):
        one.decided_s = n + n / 1000
    metrics = measure(result(refused))
    assert metrics.refusal_p99_s == pytest.approx(0.099)
    assert (metrics.retry_after_p50_s, metrics.retry_after_p90_s) == (50, 90)


def test_calibration_of_first_tokens() -> None:
    """The share that came within what was predicted, and the typical error."""
    metrics = measure(result([served(str(n), n, 0.5, 0.01, predicted_ttft_s=0.4 + 0.05 * n) for n in range(5)]))
    assert metrics.ttft_coverage == pytest.approx(3 / 5)
    assert metrics.ttft_error == pytest.approx(0.5 / 0.45 - 1, rel=0.05)


def test_nothing_happened() -> None:
    """An empty run has figures too."""
    metrics = measure(result([], ended_s=0.0))
    assert metrics.contract.attainment_offered is None
    assert metrics.goodput_rps == 0
    assert (metrics.jain_index, metrics.service_gap) == (None, None)


def test_jain_is_one_when_everybody_gets_its_fair_share() -> None:
    """Who asks for little is not to get more."""
    small = [served(f"s{n}", n, 0.1, 0.01, tenant="small") for n in range(2)]
    large = [served(f"l{n}", n, 0.1, 0.01, tenant="large") for n in range(8)]
    lost = [outcome(f"x{n}", tenant="large", decision="refused", generated=0) for n in range(20)]
    assert jain_index(small + large + lost, {}) == pytest.approx(1.0)


def test_jain_falls_when_one_takes_all() -> None:
    """To 1 / n when both ask for the same."""
    winner = [served(f"w{n}", n, 0.1, 0.01, tenant="w") for n in range(8)]
    loser = [outcome(f"l{n}", tenant="l", decision="refused", generated=0) for n in range(8)]
    assert jain_index(winner + loser, {}) == pytest.approx(0.5)
    assert jain_index(winner, {}) is None


def test_jain_respects_weights() -> None:
    """Twice the weight, twice the share."""
    one = [served(f"a{n}", n, 0.1, 0.01, tenant="a") for n in range(8)]
    other = [served(f"b{n}", n, 0.1, 0.01, tenant="b") for n in range(4)]
    lost = [outcome(f"x{t}{n}", tenant=t, decision="refused", generated=0) for n in range(20) for t in "ab"]
    assert jain_index(one + other + lost, {"a": 2.0, "b": 1.0}) == pytest.approx(1.0)
    assert jain_index(one + other + lost, {}) == pytest.approx(0.9)


def test_service_is_spread_over_the_time_of_serving() -> None:
    """The prompt that was not cached, then two for each output."""
    one = outcome("a", scheduled_s=1.0, first_token_s=3.0, finished_s=13.0, cached_tokens=40)
    lines = service_over_time([one], [1.0, 2.0, 3.0, 8.0, 20.0])
    assert lines["t"] == pytest.approx([0.0, 31.0, 62.0, 72.0, 82.0])


def test_the_service_gap_counts_while_both_are_backlogged() -> None:
    """Being served while the other has nothing waiting is no unfairness."""

    def backlogged(tenant: str, begin: float, end: float, scheduled: float | None) -> Outcome:
        return outcome(
            f"{tenant}{begin}",
            tenant=tenant,
            arrived_s=begin,
            scheduled_s=scheduled,
            first_token_s=None if scheduled is None else end,
            finished_s=None if scheduled is None else end,
            generated=1,
            output_tokens=1,
            prompt_tokens=998,
        )

    waiting = [backlogged("a", 0.0, 100.0, None), backlogged("b", 50.0, 100.0, None)]
    served_alone = backlogged("a", 0.0, 40.0, 0.0)
    assert largest_service_gap([*waiting, served_alone], {}, ended_s=100.0) == pytest.approx(0.0)
    served_both = backlogged("a", 60.0, 80.0, 60.0)
    gap = largest_service_gap([*waiting, served_both], {}, ended_s=100.0)
    assert gap == pytest.approx(1000.0)
    assert largest_service_gap([*waiting, served_both], {"a": 2.0}, ended_s=100.0) == pytest.approx(500.0)


def test_quantiles_are_interpolated() -> None:
    """As everybody's default does; of nothing there is none."""
    assert quantile([], 0.5) is None
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([0.0, 10.0], 0.25) == 2.5


def test_bootstrap_covers_the_mean_and_is_the_same_each_time() -> None:
    """Of one value it is that value."""
    assert bootstrap_mean([2.0]) == (2.0, 2.0, 2.0)
    mean, low, high = bootstrap_mean([1.0, 2.0, 3.0, 4.0])
    assert low < mean == 2.5 < high
    assert bootstrap_mean([1.0, 2.0, 3.0, 4.0]) == (mean, low, high)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def _many() -> Result:
    rng = random.Random(1)
    outcomes = []
    for n in range(20_000):
        arrived = n * 0.1
        tenant = f"t{int(rng.expovariate(0.1))}"
        one = served(
            str(n),
            arrived,
            100 + rng.random() * 2,
            0.05 * rng.random(),
            tenant=tenant,
            prompt_tokens=rng.randint(1, 4000),
        )
        one.scheduled_s = arrived + 99.5
        outcomes.append(one)
    return result(outcomes, ended_s=2100.0)


def test_twenty_thousand_requests_take_a_few_seconds() -> None:
    """A grid of a thousand runs is measured, too. (Ten times what it takes on a slow machine.)"""
    began = time.perf_counter()
    metrics = measure(_many())
    assert time.perf_counter() - began < 10
    assert metrics.service_gap is not None


def test_tables_show_the_run() -> None:
    """What was offered and kept, for a person; no run is too empty for it."""
    tenants = {"t": Tenant(name="t", contract=Contract(weight=2.0))}
    runs = [measure(result([served("a", 0, 0.5, 0.05), _flex()]), tenants), measure(result([]))]
    out = io.StringIO()
    console = Console(file=out, width=240)
    console.print(comparison(runs))
    for run in runs:
        console.print(details(run))
    text = out.getvalue()
    assert "100.0%" in text
    assert "goodput" in text
    assert "attainment of" in text
