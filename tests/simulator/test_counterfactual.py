"""Flipped decisions: what is replayed, what is forked, and when a refusal or an admission was false."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from policies.catalog import PolicySet, policy_set
from policies.overload import Level
from policies.vocabulary import Contract, StepTimeCoefficients, Tenant, Tier
from simulator.counterfactual import judge
from simulator.door import Door, DoorMaker, Knowledge
from simulator.errors import BadFleet, LawBroken
from simulator.judgement import Counterfactuals, share
from simulator.kinds import make_simulation
from simulator.records import Arrival, Device, Workload
from simulator.scripted_door import Decision, RecordingDoor, ScriptedDoor
from simulator.simulation import Simulation

REAL = StepTimeCoefficients(29.1e-3, 20.6e-3, 0.085e-3, 7.2e-9, 4.8e-8, 0.216e-3)
DEVICE = Device(
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
TENANTS = {
    "fast": Tenant(name="fast", contract=Contract(tier="priority", ttft_ms=500, tpot_ms=60)),
    "slow": Tenant(name="slow", contract=Contract(ttft_ms=2000, tpot_ms=100)),
    "free": Tenant(name="free", contract=Contract(tier="flex", ttft_ms=30000)),
}


def crowd(count: int = 80, *, every_s: float = 0.12) -> Workload:
    """More than the device can serve in time."""
    names = list(TENANTS)
    arrivals = [
        Arrival(str(i), i * every_s, names[i * 7 % 3], 100 + 251 * i % 900, 5 + 37 * i % 90, 200) for i in range(count)
    ]
    return Workload(name="crowd", arrivals=arrivals, tenants=TENANTS)


def making(workload: Workload, policies: PolicySet | None = None, **options: object) -> partial[Simulation]:
    return partial(_make, workload, policies or policy_set("headgate"), options)


def _make(workload: Workload, policies: PolicySet, options: dict[str, object], door: DoorMaker) -> Simulation:
    return Simulation(workload, DEVICE, policies, door=door, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("knowledge", ["history", "max_tokens", "clairvoyant"])
def test_replaying_every_decision_gives_the_same_run(workers: int, noise: float, knowledge: Knowledge) -> None:
    """Admitted, deferred and refused ones alike; to the bit."""
    make = making(crowd(every_s=0.09 / workers), workers=workers, step_noise=noise, knowledge=knowledge)
    decisions: dict[str, Decision] = {}
    levels: list[tuple[float, Level]] = []
    base = make(partial(RecordingDoor, decisions=decisions, levels=levels)).run()
    assert {outcome.decision for outcome in base.outcomes} >= {"admitted", "refused"}
    if workers == 1:
        assert any(decision.deferred for decision in decisions.values())
    again = make(partial(ScriptedDoor, decisions=decisions, levels=levels)).run()
    assert again.outcomes == base.outcomes
    assert (again.steps, again.busy_s, again.ended_s) == (base.steps, base.busy_s, base.ended_s)


def test_a_flip_is_the_forks_own() -> None:
    """The fork ends with one more request let in, and the replay goes on as if nothing had been."""
    make = making(crowd())
    decisions: dict[str, Decision] = {}
    levels: list[tuple[float, Level]] = []
    base = make(partial(RecordingDoor, decisions=decisions, levels=levels)).run()
    refused = next(outcome for outcome in base.outcomes if outcome.decision == "refused")
    replay = make(partial(ScriptedDoor, decisions=decisions, levels=levels))
    replay.run_until(refused.arrived_s - 1e-9)
    fork = replay.fork()
    assert isinstance(fork.door, ScriptedDoor)
    fork.door.flip(refused.id)
    forked = fork.run().outcomes
    assert replay.run().outcomes == base.outcomes
    changed = [a.id for a, b in zip(forked, base.outcomes, strict=True) if a.decision != b.decision]
    assert changed == [refused.id]


def judged(workload: Workload, name: str = "headgate", **options: object) -> Counterfactuals:
    return judge(making(workload, policy_set(name), **options), sample=100)[1]


def few(*arrivals: Arrival) -> Workload:
    return Workload(name="few", arrivals=list(arrivals), tenants=TENANTS)


def test_who_is_broken_and_who_breaks_are_both_false_admissions() -> None:
    """First come first served, a long prompt costs the short one behind it its first token; who came a second earlier
    has nothing to do with it."""
    found = judged(
        few(
            Arrival("0", 0.0, "slow", 20, 2, 9),
            Arrival("a", 1.0, "slow", 3000, 2, 9),
            Arrival("b", 1.01, "fast", 50, 2, 9),
        ),
        "chunked",
    )
    innocent, breaks, broken = found.cases
    assert (innocent.is_false, breaks.is_false, broken.is_false) == (False, True, True)
    assert (breaks.met, breaks.gained, breaks.lost) == (True, 0, 1)
    assert (broken.met, found.missed.count, found.harmful.count) == (False, 1, 1)
    assert (found.false_admissions.count, found.false_admissions.of) == (2, 3)


def test_a_refusal_for_what_never_comes_is_false() -> None:
    """Each of two may fill the whole memory, and neither does."""
    two = few(Arrival("a", 0.0, "fast", 100, 5, 3000), Arrival("b", 0.01, "fast", 100, 5, 3000))
    assert judged(two, knowledge="oracle").refused == 0
    found = judged(two, knowledge="max_tokens")
    refused = found.cases[1]
    assert (refused.decision, refused.is_false, refused.met, refused.lost) == ("refused", True, True, 0)
    assert (found.refused, found.admitted, found.false_refusals.count) == (1, 1, 1)


def test_what_is_impossible_is_refused_rightly() -> None:
    """The fork keeps it as little as was foretold."""
    found = judged(few(Arrival("a", 0.0, "fast", 4000, 5, 50)))
    (case,) = found.cases
    assert (case.decision, case.retry_after_s, case.is_false, case.retry) == ("refused", None, False, "")
    assert (found.impossible.count, found.impossible.of) == (0, 1)


def test_a_refusal_that_saves_another_is_not_false() -> None:
    """The newcomer's class goes first, so it would be in time itself, and the prompt that has begun would not."""
    slow = msgspec.structs.replace(DEVICE, tokens_per_step=64)
    two = few(Arrival("a", 0.0, "slow", 3600, 2, 9), Arrival("b", 0.2, "fast", 700, 2, 9))
    found = judge(lambda door: Simulation(two, slow, policy_set("headgate"), door=door), sample=9)[1]
    case = found.cases[1]
    assert (case.decision, case.met, case.lost, case.is_false) == ("refused", True, 1, False)


def test_who_comes_again_when_told_is_decided_on_anew() -> None:
    """By the real admission, as it stands then."""
    slow = msgspec.structs.replace(DEVICE, tokens_per_step=64)
    two = few(Arrival("a", 0.0, "slow", 3600, 2, 9), Arrival("b", 0.2, "fast", 700, 2, 9))
    found = judge(lambda door: Simulation(two, slow, policy_set("headgate"), door=door), sample=9)[1]
    assert found.cases[1].retry_after_s is not None
    assert found.cases[1].retry == "met"
    assert (found.retries_admitted.count, found.retries_met.count, found.retries_met.of) == (1, 1, 1)


def test_a_sample_is_drawn_by_its_seed() -> None:
    """As many refusals as admissions; the same ones again."""
    make = making(crowd())
    first, again, other = (judge(make, sample=5, seed=seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert [case.id for case in first.cases] != [case.id for case in other.cases]
    assert sorted(case.decision for case in first.cases) == ["admitted"] * 5 + ["refused"] * 5
    assert sum(group.false_refusals.of for group in first.tiers) == 5
    assert sum(group.false_admissions.of for group in first.deciles) == 5
    assert all(case.tier < Tier.flex for case in first.cases)


def test_the_run_that_is_judged_is_the_plain_one() -> None:
    """To record decisions changes nothing."""
    plain = making(crowd())(Door).run()
    assert judge(making(crowd()), sample=2)[0].outcomes == plain.outcomes


def test_a_simulation_that_does_not_repeat_itself_is_told() -> None:
    """Nothing that a fork says would mean anything."""
    seeds = iter(range(9))

    def make(door: DoorMaker) -> Simulation:
        return Simulation(crowd(), DEVICE, policy_set("headgate"), door=door, seed=next(seeds), step_noise=0.3)

    with pytest.raises(LawBroken, match="came out otherwise"):
        judge(make, sample=1)


def test_intervals_are_those_of_wilson() -> None:
    """10 of 100: 5.5 to 17.4 %; 0 of 10: up to 27.8 %; of nothing there is none."""
    some, none, nothing = share(10, 100), share(0, 10), share(0, 0)
    assert [some.share, some.low, some.high] == pytest.approx([0.1, 0.0552, 0.1744], abs=1e-4)
    assert [none.low, none.high] == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert (nothing.share, nothing.low, nothing.high) == (None, None, None)


def test_a_clairvoyant_scheduler_predicts_every_step() -> None:
    """As the device will take it, from the first one on, without a doubt; one that learns begins with some."""
    knowing = making(crowd(), knowledge="clairvoyant")(Door)
    assert knowing.run().step_error == pytest.approx(0.0, abs=1e-3)  # a chunk of one token counts as a decode there
    worker = knowing._fleet.workers[0]
    load = worker.load(0.0)
    assert (load.step_time, load.ratio_p50, load.ratio_p90, load.ratio_p95) == (REAL, 1.0, 1.0, 1.0)
    learning = making(crowd(), knowledge="oracle")(Door)._fleet.workers[0].load(0.0)
    assert learning.ratio_p90 > 1


def test_where_requests_move_nobody_is_judged() -> None:
    """What a request did to others on its way is not in any decision at the door."""
    with pytest.raises(BadFleet, match="stay on one worker"):
        judge(lambda door: make_simulation(crowd(9), DEVICE, policy_set("llumnix"), workers=2, door=door), sample=1)
