"""Tenants' limits in a simulation are those of the running stack."""

from __future__ import annotations

import msgspec

from policies.catalog import policy_set
from policies.vocabulary import Contract, Limits, Tenant
from simulator.devices import load_device
from simulator.records import Arrival, Outcome, Workload
from simulator.simulation import Simulation

_PROMISE = Contract(tier="priority", ttft_ms=5000, tpot_ms=200)


def run(limits: Limits, *arrivals: Arrival, above_rate: bool = False, policy: str = "headgate") -> list[Outcome]:
    policies = policy_set(policy)
    admission = msgspec.structs.replace(policies.admission, above_rate=above_rate)
    tenants = {"t": Tenant(name="t", contract=_PROMISE, limits=limits)}
    workload = Workload(name="w", arrivals=list(arrivals), tenants=tenants)
    device = load_device("llama2-70b-h100-tp4")
    return Simulation(workload, device, msgspec.structs.replace(policies, admission=admission)).run().outcomes


def every(seconds: float, count: int) -> list[Arrival]:
    return [Arrival(f"r{i}", i * seconds, "t", 100, 4, 4) for i in range(count)]


def test_what_is_above_the_rate_a_minute_is_refused_until_it_has_refilled() -> None:
    """Two a minute: the third of a burst is refused, with the time of the refill; after that time one is taken."""
    burst = every(0.0, 3)
    late = Arrival("late", 31.0, "t", 100, 4, 4)
    outcomes = {o.id: o for o in run(Limits(rpm=2), *burst, late)}
    assert [outcomes[f"r{i}"].decision for i in range(3)] == ["admitted", "admitted", "refused"]
    assert outcomes["r2"].reason == "requests_per_minute"
    assert outcomes["r2"].retry_after_s == 30.0
    assert outcomes["late"].decision == "admitted"


def test_limits_hold_whatever_the_admission() -> None:
    """A tenant's own limits are no matter of policy."""
    decisions = [o.decision for o in run(Limits(rpm=2), *every(0.0, 3), policy="chunked")]
    assert decisions == ["admitted", "admitted", "refused"]


def test_above_its_rate_a_tenant_may_come_in_without_its_contract() -> None:
    """`above_rate`: best effort instead of a refusal."""
    decisions = [o.decision for o in run(Limits(rpm=2), *every(0.0, 3), above_rate=True)]
    assert decisions == ["admitted", "admitted", "relegated"]


def test_an_end_gives_back_what_was_reserved() -> None:
    """One at a time, one after the other: each is over before the next comes."""
    assert {o.decision for o in run(Limits(concurrency=1), *every(5.0, 4))} == {"admitted"}
    assert [o.reason for o in run(Limits(concurrency=1), *every(0.0, 2))] == ["", "concurrency"]
