"""What is claimed of fairness, in miniature: VTC's bound, floods, and shared prefixes, on whole runs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from msgspec.structs import replace

from policies.vocabulary import Contract, StepTimeCoefficients, Tenant
from simulator.devices import load_device, scaled_kv
from simulator.kinds import make_simulation
from simulator.overrides import changed_policies
from simulator.records import Arrival, Device, Outcome, Result, StepRecord, Workload
from simulator.service import in_device_seconds, in_tokens, longest_backlog, service, widest_gap

OPT = scaled_kv(load_device("opt-13b-a100"), 0.25)
LLAMA = load_device("llama2-70b-h100-tp4")


def run(what: Workload, device: Device, policy: str, changes: dict[str, object] | None = None) -> Result:
    return make_simulation(what, device, changed_policies(policy, changes or {}), keep_steps=True).run()


def backlog(*, weights: tuple[float, float] = (1.0, 1.0), requests: int = 150) -> Workload:
    """Chats with long outputs and documents with long prompts, all within three seconds."""
    rng = random.Random("backlog")
    arrivals = []
    for number in range(requests):
        output = max(1, min(300, round(rng.lognormvariate(4.5, 0.7))))
        arrivals.append(Arrival(f"c{number}", number * 0.02, "chats", rng.randint(20, 120), output, 512))
        prompt = max(1, min(3000, round(rng.lognormvariate(6.8, 0.6))))
        arrivals.append(Arrival(f"d{number}", number * 0.02, "documents", prompt, rng.randint(4, 40), 64))
    tenants = {
        name: Tenant(name=name, contract=Contract(weight=weight))
        for name, weight in zip(("chats", "documents"), weights, strict=True)
    }
    return Workload(name="backlog", arrivals=arrivals, tenants=tenants)


def gaps(what: Workload, result: Result, device: Device) -> tuple[float, float, float]:
    """How long both were backlogged, and the widest gap meanwhile, in VTC's tokens and in device-seconds."""
    of = {arrival.id: arrival.tenant for arrival in what.arrivals}
    weights = {name: tenant.contract.weight for name, tenant in what.tenants.items()}
    from_s, until_s = longest_backlog(result.outcomes, ("chats", "documents"))
    tokens, seconds = (
        widest_gap(
            service(result.steps_kept, of, price), "chats", "documents", from_s=from_s, until_s=until_s, weights=weights
        )
        for price in (in_tokens, in_device_seconds(device))
    )
    return until_s - from_s, tokens, seconds


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0)])
@pytest.mark.parametrize("policy", ["vtc", "vtc-edf", "headgate"])
def test_backlogged_tenants_differ_by_less_than_the_bound_of_vtc(policy: str, weights: tuple[float, float]) -> None:
    """By 2 max(longest prompt, 2 x tokens of KV) at most, over weights of 1 or more, whatever they send."""
    what = backlog(weights=weights)
    changes: dict[str, object] = {"admission": "none"} if policy == "headgate" else {}
    longest_s, tokens, _ = gaps(what, run(what, OPT, policy, changes), OPT)
    prompt = max(arrival.prompt_tokens for arrival in what.arrivals)
    assert longest_s > 5
    assert tokens <= 2 * max(prompt, 2 * OPT.blocks * 16)


def test_first_come_first_served_grows_apart_where_vtc_does_not() -> None:
    """The difference in device-seconds under FCFS is several times that under VTC, and would grow with the backlog."""
    what = backlog()
    _, _, fcfs = gaps(what, run(what, OPT, "chunked"), OPT)
    _, _, vtc = gaps(what, run(what, OPT, "vtc"), OPT)
    assert fcfs > 3 * vtc


def test_a_shared_prefix_is_charged_for_what_was_computed() -> None:
    """Two backlogged tenants with equal prompts, of which one shares 2,048 of 2,176 tokens: for about equal device time
    it gets several times as many requests through; without a cache both get as many."""
    arrivals = []
    for number in range(120):
        arrivals.append(Arrival(f"s{number}", number * 0.001, "shared", 2176, 8, 8, (0, 1, 2, 3)))
        arrivals.append(Arrival(f"o{number}", number * 0.001, "own", 2176, 8, 8))
    what = Workload(name="w", arrivals=arrivals, tenants={name: Tenant(name=name) for name in ("shared", "own")})
    of = {arrival.id: arrival.tenant for arrival in arrivals}
    through, seconds = {}, {}
    for cache in (True, False):
        result = run(what, LLAMA, "vtc", {"prefix_cache": cache, "batch_size": 8})
        _, until_s = longest_backlog(result.outcomes, ("shared", "own"))
        through[cache] = [
            sum(o.tenant == name and o.finished_s is not None and o.finished_s <= until_s for o in result.outcomes)
            for name in ("shared", "own")
        ]
        ledger = service(result.steps_kept, of, in_device_seconds(LLAMA))
        seconds[cache] = next(total for at, total in reversed(ledger) if at <= until_s)
    assert through[True][0] > 3 * through[True][1] > 0
    one, other = sorted(seconds[True].values())
    assert other < 1.5 * one
    assert abs(through[False][0] - through[False][1]) <= 8


def crowd(flood_rps: float, *, seed: int, sigma: float = 0.0) -> Workload:
    """Three tenants with 0.3 requests/s each for 60 s, and a fourth, of the same class, that floods from 10 s on.
    Prompts of 600 tokens in the median."""
    arrivals = []
    for name, rate in (("a", 0.3), ("b", 0.3), ("c", 0.3), ("flood", flood_rps)):
        rng = random.Random(f"{name} {seed}")
        at_s = 10.0 if name == "flood" else 0.0
        number = 0
        while rate and (at_s := at_s + rng.expovariate(rate)) < 60:
            output = max(1, min(400, round(rng.lognormvariate(4.7, 0.6))))
            prompt = max(1, min(6000, round(600 * rng.lognormvariate(0.0, sigma))))
            arrivals.append(Arrival(f"{name}{number}", at_s, name, prompt, output, 512))
            number += 1
    arrivals.sort(key=lambda arrival: arrival.at_s)
    promise = Contract(tier="priority", ttft_ms=1500, tpot_ms=60)
    names = {arrival.tenant for arrival in arrivals}
    return Workload(name="w", arrivals=arrivals, tenants={name: Tenant(name=name, contract=promise) for name in names})


def kept_of_others(
    policy: str, flood_rps: float, *, seed: int, sigma: float = 0.0, changes: dict[str, object] | None = None
) -> float:
    outcomes = run(crowd(flood_rps, seed=seed, sigma=sigma), LLAMA, policy, changes).outcomes
    others = [outcome for outcome in outcomes if outcome.tenant != "flood"]
    return sum(outcome.met for outcome in others) / len(others)


def test_a_flood_of_the_same_class_hardly_moves_the_others() -> None:
    """A tenant that sends half as much again as the device can do costs the others less than 5 % of their contracts
    under `headgate` with steered room, of which they lose most when everybody is let in first come first served."""
    seeds, steered = range(3), {"admission.fair_most": 0.7}
    changes = [
        kept_of_others("headgate", 6.0, seed=seed, changes={**steered}) - kept_of_others("headgate", 0.0, seed=seed)
        for seed in seeds
    ]
    assert sum(changes) / len(seeds) > -0.05
    assert kept_of_others("chunked", 6.0, seed=0) < 0.5


def test_steered_room_keeps_long_prompts_of_others() -> None:
    """Where prompts differ widely, a flood of several times what the device can do leaves no time for long ones: a
    fixed room loses a fifth of the others' contracts at least, a room that grows with their refusals half of that."""
    fixed = kept_of_others("headgate", 40.0, seed=0, sigma=0.8)
    steered = kept_of_others("headgate", 40.0, seed=0, sigma=0.8, changes={"admission.fair_most": 0.7})
    assert fixed < 0.8
    assert 1 - steered < (1 - fixed) / 2


def test_service_is_priced_by_step() -> None:
    """Prompts by their part of a full step, decodes by their part of the step that they shared; in VTC's tokens one and
    two. Nothing is counted before the step is over."""
    steps = [
        StepRecord("w0", 1, 0.0, 1.0, 1.0, ["a", "b"], [10, 1], [True, False], 0, 2, 2, 0, 0),
        StepRecord("w0", 2, 1.0, 2.0, 1.0, ["a", "b"], [1, 1], [False, False], 0, 2, 2, 0, 0),
    ]
    of = {"a": "A", "b": "B"}
    assert service(steps, of, in_tokens) == [(1.0, {"A": 10.0, "B": 2.0}), (2.0, {"A": 12.0, "B": 4.0})]
    times = StepTimeCoefficients(floor_s=4.0, base_s=2.0, per_token_s=0.2, per_row_s=0.5, per_attended_s=0.0)
    device = replace(OPT, tokens_per_step=100, step_time=times)
    # A full step takes 2 + 0.2 x 100 and a row; alone, or two, decode at the floor.
    (_, first), (_, second) = service(steps, of, in_device_seconds(device))
    assert first == pytest.approx({"A": 22.5 / 100 * 10, "B": 4.5})
    assert second == pytest.approx({"A": 22.5 / 100 * 10 + 2.5, "B": 7.0})


def test_backlogs_and_gaps_are_found() -> None:
    """Both wait from the later arrival to the first start; a gap is the most that was gained over any part of it."""

    def outcome(name: str, arrived_s: float, scheduled_s: float) -> Outcome:
        return Outcome(
            id=f"{name}{arrived_s}",
            tenant=name,
            tier=1,
            arrived_s=arrived_s,
            prompt_tokens=1,
            output_tokens=1,
            ttft_s=None,
            tpot_s=None,
            scheduled_s=scheduled_s,
        )

    outcomes = [outcome("A", 0.0, 5.0), outcome("A", 4.0, 9.0), outcome("B", 1.0, 7.0), outcome("B", 8.0, 8.5)]
    assert longest_backlog(outcomes, ("A", "B")) == (1.0, 7.0)
    assert longest_backlog(outcomes, ("A", "C")) == (0.0, 0.0)
    ledger = [(1.0, {"A": 1.0}), (2.0, {"A": 5.0, "B": 2.0}), (3.0, {"A": 5.0, "B": 9.0}), (9.0, {"A": 99.0})]
    assert all(one[0] < other[0] for one, other in pairwise(ledger))
    assert widest_gap(ledger, "A", "B", from_s=0.0, until_s=7.0) == 7.0
    assert widest_gap(ledger, "A", "B", from_s=0.0, until_s=7.0, weights={"B": 7.0}) == pytest.approx(
        26 / 7 + 2 - 1 - 1
    )
