"""The simulation loop: exact times, determinism, skipping that changes nothing, forks, and what is conserved."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.verdict import AdmissionKind, Policy
from policies.catalog import CATALOG, PolicySet, policy_set
from policies.vocabulary import Contract, StepTimeCoefficients, Tenant
from simulator.records import Arrival, Device, Result, Workload
from simulator.simulation import Knowledge, Simulation

#: Every step takes one second.
SECONDS = StepTimeCoefficients(floor_s=0.0, base_s=1.0, per_token_s=0.0, per_attended_s=0.0)
REAL = StepTimeCoefficients(29.1e-3, 20.6e-3, 0.085e-3, 7.2e-9, 4.8e-8, 0.216e-3)


def device(**changes: object) -> Device:
    usual = Device(
        name="d",
        blocks=400,
        host_blocks=100,
        block_bytes=1 << 20,
        slots=16,
        tokens_per_step=256,
        max_context=4096,
        swap_bytes_per_s=20e9,
        step_time=REAL,
    )
    return msgspec.structs.replace(usual, **changes)


def workload(*arrivals: Arrival, **contracts: Contract) -> Workload:
    names = {arrival.tenant for arrival in arrivals}
    tenants = {name: Tenant(name=name, contract=contracts.get(name, Contract())) for name in sorted(names)}
    return Workload(name="w", arrivals=list(arrivals), tenants=tenants)


def open_set(name: str = "chunked", **changes: object) -> PolicySet:
    policies = policy_set(name)
    config = msgspec.structs.replace(policies.scheduler, **changes)
    return msgspec.structs.replace(policies, scheduler=config, admission=Policy(kind="none"))


def comparable(result: Result) -> Result:
    return msgspec.structs.replace(result, wall_s=0.0)


def test_one_request_takes_a_step_for_its_prompt_and_one_for_each_output() -> None:
    """The first output comes with the prompt's step, and nothing else is waited for."""
    result = Simulation(workload(Arrival("a", 5.0, "t", 40, 4, 9)), device(step_time=SECONDS), open_set()).run()
    (outcome,) = result.outcomes
    assert (outcome.scheduled_s, outcome.first_token_s, outcome.finished_s) == (5.0, 6.0, 9.0)
    assert (outcome.generated, outcome.worker, outcome.decision) == (4, "w0", "admitted")
    assert outcome.measured_tpot_s == 1.0


def test_a_step_in_flight_costs_what_it_does_after_the_last_output() -> None:
    """With two in flight, a step that was launched before the end was known still runs; with one, none does."""
    arrivals = workload(Arrival("a", 0.0, "t", 40, 4, 9))
    two = Simulation(arrivals, device(step_time=SECONDS), open_set()).run()
    one = Simulation(arrivals, device(step_time=SECONDS), open_set(steps_in_flight=1)).run()
    assert (two.steps, two.ended_s, one.steps, one.ended_s) == (5, 5.0, 4, 4.0)


def test_an_arrival_is_planned_for_at_the_end_of_the_steps_in_flight() -> None:
    """Two steps are launched when the second request comes, and it starts behind them."""
    arrivals = workload(Arrival("a", 0.0, "t", 40, 9, 9), Arrival("b", 0.5, "t", 40, 2, 9))
    outcomes = Simulation(arrivals, device(step_time=SECONDS), open_set()).run().outcomes
    assert (outcomes[1].scheduled_s, outcomes[1].first_token_s, outcomes[1].finished_s) == (1.0, 3.0, 4.0)


def test_a_prompt_is_cut_into_the_chunks_that_a_step_takes() -> None:
    """600 tokens at 256 a step are three steps."""
    result = Simulation(workload(Arrival("a", 0.0, "t", 600, 1, 1)), device(step_time=SECONDS), open_set()).run()
    assert result.outcomes[0].first_token_s == 3.0
    assert result.computed_tokens == 600


def test_step_times_are_those_of_the_device() -> None:
    """Prompt and decode steps last as the coefficients say."""
    result = Simulation(workload(Arrival("a", 0.0, "t", 200, 2, 2)), device(), open_set()).run()
    prefill = 20.6e-3 + 200 * 0.085e-3 + 7.2e-9 * 200 * 100 + 0.216e-3
    decode = 29.1e-3 + 4.8e-8 * 201 + 0.216e-3
    assert result.outcomes[0].first_token_s == pytest.approx(prefill)
    assert result.outcomes[0].finished_s == pytest.approx(prefill + decode)


def test_an_equal_prefix_of_the_same_tenant_is_not_computed_again() -> None:
    """Ids that begin alike share blocks; another tenant's never do."""
    arrivals = workload(
        Arrival("a", 0.0, "t", 600, 1, 1, (1, 2)),
        Arrival("b", 9.0, "t", 600, 1, 1, (1, 3)),
        Arrival("c", 9.0, "u", 600, 1, 1, (1, 2)),
    )
    outcomes = Simulation(arrivals, device(step_time=SECONDS), open_set()).run().outcomes
    assert [outcome.cached_tokens for outcome in outcomes] == [0, 512, 0]


def test_what_a_worker_can_never_serve_is_refused() -> None:
    """A request beyond the context is an outcome, not an error."""
    result = Simulation(workload(Arrival("a", 0.0, "t", 5000, 1, 1)), device(), open_set()).run()
    assert (result.outcomes[0].decision, result.outcomes[0].reason) == ("refused", "unservable")


def test_load_compresses_arrivals() -> None:
    """At twice the load everybody comes in half the time."""
    arrivals = workload(Arrival("a", 4.0, "t", 40, 1, 1), Arrival("b", 8.0, "t", 40, 1, 1))
    result = Simulation(arrivals, device(step_time=SECONDS), open_set(), load=2.0).run()
    assert [outcome.arrived_s for outcome in result.outcomes] == [2.0, 4.0]


def test_a_static_batch_that_never_fills_never_starts() -> None:
    """Its requests stay without an end, and nothing else is wrong."""
    result = Simulation(workload(Arrival("a", 0.0, "t", 40, 1, 1)), device(), open_set("static")).run()
    assert (result.outcomes[0].finished_s, result.steps) == (None, 0)


def test_a_dynamic_batch_starts_when_its_oldest_has_waited() -> None:
    """The scheduler is woken at its own instant, though nothing happens then."""
    policies = open_set("dynamic", batch_size=4, batch_timeout_s=2.0)
    result = Simulation(workload(Arrival("a", 1.0, "t", 40, 1, 1)), device(step_time=SECONDS), policies).run()
    assert result.outcomes[0].scheduled_s == 3.0


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 3),
        st.sampled_from(("t", "u", "v")),
        st.integers(1, 700),
        st.integers(1, 120),
        st.integers(0, 40),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=14,
)
CONTRACTS = {
    "t": Contract(tier="priority", ttft_ms=400.0, tpot_ms=60.0, ttft_per_1k_ms=100.0),
    "u": Contract(ttft_ms=2000.0, tpot_ms=120.0),
    "v": Contract(tier="flex"),
}
#: Policies whose scheduler alone matters here.
NAMES = sorted(name for name, policies in CATALOG.items() if policies.roles == "mixed" and name != "static")


def drawn(rows: list[tuple[float, str, int, int, int, int]]) -> Workload:
    arrivals = [
        Arrival(f"r{i}", at, tenant, prompt, outputs, outputs + more, tuple(range(shared)))
        for i, (at, tenant, prompt, outputs, more, shared) in enumerate(sorted(rows))
    ]
    return workload(*arrivals, **CONTRACTS)


@settings(max_examples=60, deadline=None)
@given(
    rows=ARRIVALS,
    name=st.sampled_from(NAMES),
    blocks=st.sampled_from((60, 100, 400)),
    in_flight=st.integers(1, 3),
    sigma=st.sampled_from((0.0, 0.2)),
    workers=st.integers(1, 2),
)
def test_skipping_steps_changes_nothing(
    rows: list[tuple[float, str, int, int, int, int]],
    name: str,
    blocks: int,
    in_flight: int,
    sigma: float,
    workers: int,
) -> None:
    """Every outcome, time and count is the same to the bit, whatever the policy, the memory and the noise."""
    policies = open_set(name, steps_in_flight=in_flight)

    def run(*, skip: bool) -> Result:
        simulation = Simulation(
            drawn(rows),
            device(blocks=blocks),
            policies,
            workers=workers,
            step_noise=sigma,
            stragglers=sigma / 10,
            skip=skip,
        )
        return comparable(simulation.run())

    assert run(skip=True) == run(skip=False)


@settings(max_examples=25, deadline=None)
@given(rows=ARRIVALS, name=st.sampled_from(NAMES), instant=st.floats(0, 5), blocks=st.sampled_from((60, 400)))
def test_a_fork_goes_on_as_the_original(
    rows: list[tuple[float, str, int, int, int, int]], name: str, instant: float, blocks: int
) -> None:
    """Wherever it is taken, and whichever of the two runs first."""
    simulation = Simulation(drawn(rows), device(blocks=blocks), open_set(name), step_noise=0.2)
    simulation.run_until(instant)
    fork = simulation.fork()
    assert fork.now == simulation.now
    assert comparable(fork.run()) == comparable(simulation.run())


def test_a_seed_decides_the_noise_and_nothing_else_does() -> None:
    """Equal seeds give equal results, different ones do not."""
    rows = [(i / 10, "t", 50 + i, 20, 5, 0) for i in range(20)]
    runs = [Simulation(drawn(rows), device(), open_set(), seed=seed, step_noise=0.3).run() for seed in (1, 1, 2)]
    assert comparable(runs[0]) == comparable(runs[1])
    assert runs[0].busy_s != runs[2].busy_s


def test_records_of_steps_add_up_to_the_totals() -> None:
    """Kept steps follow each other without a gap while there is work, and their tokens are those computed."""
    rows = [(i / 50, "t", 50 + i, 20, 5, 0) for i in range(20)]
    result = Simulation(drawn(rows), device(), open_set(), keep_steps=True).run()
    assert len(result.steps_kept) == result.steps
    assert sum(sum(record.counts) for record in result.steps_kept) == result.computed_tokens
    assert sum(record.ended_s - record.begun_s for record in result.steps_kept) == pytest.approx(result.busy_s)
    assert all(a.ended_s <= b.begun_s for a, b in zip(result.steps_kept, result.steps_kept[1:], strict=False))


def test_all_workers_of_a_fleet_get_work() -> None:
    """Twenty at once over four workers."""
    rows = [(0.0, "t", 100, 20, 5, 0)] * 20
    result = Simulation(drawn(rows), device(), open_set(), workers=4).run()
    assert {outcome.worker for outcome in result.outcomes} == {"w0", "w1", "w2", "w3"}


def test_time_runs_as_far_as_it_is_told() -> None:
    """`run_until` stops there, with what has happened by then."""
    simulation = Simulation(workload(Arrival("a", 0.0, "t", 40, 9, 9)), device(step_time=SECONDS), open_set())
    simulation.run_until(1.5)
    assert (simulation.now, simulation.result().outcomes[0].first_token_s) == (1.5, 1.0)
    assert simulation.result().outcomes[0].finished_s is None


@settings(max_examples=40, deadline=None)
@given(
    rows=ARRIVALS,
    kind=st.sampled_from(get_args(AdmissionKind)),
    knowledge=st.sampled_from(get_args(Knowledge)),
    workers=st.integers(1, 2),
    relegate=st.booleans(),
    instant=st.floats(0, 5),
)
def test_admission_sees_the_same_whether_steps_are_skipped_or_forked(
    rows: list[tuple[float, str, int, int, int, int]],
    kind: AdmissionKind,
    knowledge: Knowledge,
    workers: int,
    relegate: bool,
    instant: float,
) -> None:
    """Every decision, its instant and its reason; and everybody is decided upon."""
    policies = msgspec.structs.replace(policy_set("headgate"), admission=Policy(kind=kind, relegate=relegate))

    def simulation(*, skip: bool) -> Simulation:
        return Simulation(
            drawn(rows),
            device(blocks=100),
            policies,
            workers=workers,
            knowledge=knowledge,
            step_noise=0.1,
            length_noise=0.3,
            skip=skip,
        )

    skipping = simulation(skip=True)
    skipping.run_until(instant)
    fork = skipping.fork()
    expected = comparable(simulation(skip=False).run())
    assert comparable(skipping.run()) == expected
    assert comparable(fork.run()) == expected
    assert all(outcome.decision and outcome.decided_s is not None for outcome in expected.outcomes)


def test_under_a_contract_what_cannot_be_in_time_is_refused_with_a_time_to_come_back() -> None:
    """Forty prompts at once, of which only some can start within their promise."""
    rows = [(0.0, "t", 600, 20, 5, 0)] * 40
    result = Simulation(drawn(rows), device(blocks=2000), policy_set("headgate")).run()
    refused = [outcome for outcome in result.outcomes if outcome.decision == "refused"]
    admitted = [outcome for outcome in result.outcomes if outcome.admitted]
    assert refused
    assert admitted
    assert all(outcome.retry_after_s is not None and outcome.reason for outcome in refused)
    assert all(outcome.met for outcome in admitted)


def test_the_pause_of_a_preempted_request_is_the_time_between_its_outputs() -> None:
    """One of a lower class gives all its blocks to a newcomer, and goes on when that is over."""
    arrivals = workload(Arrival("low", 0.0, "v", 200, 100, 100), Arrival("high", 5.5, "t", 200, 8, 8), **CONTRACTS)
    policies = open_set("priority", preemption="recompute", min_run_steps=1, watermark=0.0)
    result = Simulation(arrivals, device(blocks=20, step_time=SECONDS), policies).run()
    low, high = result.outcomes
    assert low.preemptions == 1
    assert high.preemptions == 0
    assert high.finished_s is not None
    assert high.finished_s - 9.0 <= low.longest_gap_s <= high.finished_s - 5.0
    assert low.measured_tpot_s is not None
    assert low.longest_gap_s > 5 * low.measured_tpot_s
    assert result.lost_tokens > 200
