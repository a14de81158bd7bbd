"""The bound on what anybody could keep: never below what somebody does, and exact where it can be counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalog import policy_set
from policies.vocabulary import Contract, StepTimeCoefficients, Tenant
from simulator.fluid_bound import most_met
from simulator.metrics import measure
from simulator.records import Arrival, Device, Workload
from simulator.simulation import Simulation

#: A prompt token takes 10 ms wherever it is, and nothing else takes any time.
LINEAR = StepTimeCoefficients(floor_s=0.0, base_s=0.0, per_token_s=0.01)
REAL = StepTimeCoefficients(29.1e-3, 20.6e-3, 0.085e-3, 7.2e-9, 4.8e-8, 0.216e-3)


def device(step_time: StepTimeCoefficients) -> Device:
    return Device(
        name="d",
        blocks=4000,
        host_blocks=0,
        block_bytes=1 << 20,
        slots=32,
        tokens_per_step=256,
        max_context=4096,
        swap_bytes_per_s=20e9,
        step_time=step_time,
    )


def workload(*arrivals: Arrival, ttft_ms: float = 1000, tpot_ms: float | None = None) -> Workload:
    contracts = {"t": Contract(ttft_ms=ttft_ms, tpot_ms=tpot_ms), "free": Contract(tier="flex", ttft_ms=ttft_ms)}
    tenants = {name: Tenant(name=name, contract=contract) for name, contract in contracts.items()}
    return Workload(name="w", arrivals=list(arrivals), tenants=tenants)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (3, 2), (9, 2)])
def test_of_those_that_come_at_once_as_many_as_have_time(count: int, kept: int) -> None:
    """Half a second each, within one second: two."""
    arrivals = [Arrival(str(i), 0.0, "t", 50, 1, 1) for i in range(count)]
    assert most_met(workload(*arrivals), device(LINEAR)) == kept
    assert most_met(workload(*arrivals), device(LINEAR), workers=2) == min(count, 2 * kept)


def test_the_cheapest_are_the_ones_that_are_kept() -> None:
    """Ten of a tenth of a second, not one that takes the whole."""
    arrivals = [Arrival("long", 0.0, "t", 100, 1, 1), *(Arrival(str(i), 0.0, "t", 10, 1, 1) for i in range(10))]
    assert most_met(workload(*arrivals), device(LINEAR)) == 10


def test_what_is_impossible_and_what_has_no_contract_do_not_count() -> None:
    """Two seconds of work are never done in one."""
    arrivals = [Arrival("long", 0.0, "t", 200, 1, 1), Arrival("free", 0.0, "free", 10, 1, 1)]
    assert most_met(workload(*arrivals), device(LINEAR)) == 0


def test_outputs_have_time_as_their_pace_allows() -> None:
    """A hundred outputs of ten milliseconds: one such request fills a window of a second, two one of two."""
    arrivals = [Arrival(str(i), 0.0, "t", 1, 100, 100) for i in range(4)]
    assert most_met(workload(*arrivals, ttft_ms=10, tpot_ms=10), device(LINEAR)) == 1
    assert most_met(workload(*arrivals, ttft_ms=40, tpot_ms=20), device(LINEAR)) == 2


def test_a_prefix_that_came_before_may_cost_nothing() -> None:
    """The bound holds for whoever has all of it in a cache."""
    shared = [Arrival(str(i), 0.0, "t", 600, 1, 1, (1, 2)) for i in range(3)]
    plain = [Arrival(str(i), 0.0, "t", 600, 1, 1) for i in range(3)]
    assert most_met(workload(*shared, ttft_ms=7000), device(LINEAR)) == 3
    assert most_met(workload(*plain, ttft_ms=7000), device(LINEAR)) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 900), st.integers(1, 60)), min_size=1, max_size=40),
    st.sampled_from(["headgate", "chunked", "edf"]),
    st.integers(1, 3),
)
def test_nobody_keeps_more(requests: list[tuple[int, int, int]], policy: str, workers: int) -> None:
    """Whatever decides, on whatever comes."""
    at = sorted(requests)
    arrivals = [Arrival(str(i), tenths / 10, "t", prompt, out, out) for i, (tenths, prompt, out) in enumerate(at)]
    many = workload(*arrivals, ttft_ms=400, tpot_ms=40)
    result = Simulation(many, device(REAL), policy_set(policy), workers=workers).run()
    assert measure(result).contract.met <= most_met(many, device(REAL), workers=workers)
