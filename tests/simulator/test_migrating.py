"""Live migration in a simulated fleet: it relieves, it drains, it comes to rest, and nobody is in two places."""

from __future__ import annotations

from collections import Counter
from math import inf

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.catalog import Placement, policy_set
from policies.migration import MigrationPolicy
from policies.vocabulary import StepTimeCoefficients, Tenant
from simulator.migrating import MigratingSimulation
from simulator.records import Arrival, Device, Workload

POLICY = MigrationPolicy(every_s=0.25, low=20.0, high=30.0)


def device(*, blocks: int = 400, transfer_bytes_per_s: float = 1e8) -> Device:
    return Device(
        name="test",
        blocks=blocks,
        host_blocks=0,
        block_bytes=16_000,
        slots=64,
        tokens_per_step=1024,
        max_context=8192,
        swap_bytes_per_s=1e9,
        step_time=StepTimeCoefficients(0.02, 0.015, 0.0001),
        transfer_bytes_per_s=transfer_bytes_per_s,
    )


def workload(*requests: tuple[float, int, int]) -> Workload:
    """Requests by (arrival, prompt, outputs)."""
    arrivals = [
        Arrival(f"r{i:02}", at, "t", prompt, outputs, outputs) for i, (at, prompt, outputs) in enumerate(requests)
    ]
    return Workload(name="test", arrivals=arrivals, tenants={"t": Tenant(name="t")})


def simulate(
    what: Workload,
    on: Device,
    *,
    workers: int = 2,
    placement: Placement = "round-robin",
    policy: MigrationPolicy = POLICY,
    skip: bool = True,
    latency_s: float = 0.0,
) -> MigratingSimulation:
    policies = msgspec.structs.replace(policy_set("llumnix"), placement=placement)
    return MigratingSimulation(what, on, policies, workers=workers, migration=policy, skip=skip, latency_s=latency_s)


def lopsided() -> Workload:
    """In turns, a request that grows for long and one that is over soon: by turns, one worker gets all the long."""
    return workload(*[(0.05 * i, 200, 900 if i % 2 else 10) for i in range(16)])


def test_migration_relieves_a_worker_that_runs_out_of_memory() -> None:
    """Without it one worker preempts while the other is idle; with it nobody gives way, and all end sooner."""
    off = simulate(lopsided(), device(), policy=MigrationPolicy(low=-inf))
    on = simulate(lopsided(), device())
    without, moved = off.run(), on.run()
    assert not off.moved
    assert sum(outcome.preemptions for outcome in without.outcomes) > 0
    assert sum(outcome.preemptions for outcome in moved.outcomes) == 0
    assert max(o.finished_s or inf for o in moved.outcomes) < max(o.finished_s or inf for o in without.outcomes)
    assert len(on.moved) >= 3
    assert moved.transferred_bytes >= sum(move.tokens for move in on.moved) // 16 * 16_000


def test_a_request_stands_still_for_a_block_however_long_it_is() -> None:
    """From the source letting go to the destination going on, a block travels: the same for any length."""
    simulation = simulate(lopsided(), device(transfer_bytes_per_s=1e7), latency_s=0.001)
    simulation.run()
    assert max(move.tokens for move in simulation.moved) > 2 * min(move.tokens for move in simulation.moved)
    assert all(move.resumed_s - move.stopped_s <= 0.001 + 2 * 16_000 / 1e7 for move in simulation.moved)
    assert all(move.stages >= 2 for move in simulation.moved)


def test_a_draining_worker_is_emptied_and_gets_nothing() -> None:
    """Long before its requests would end, all of them run elsewhere; and they end in full."""
    what = workload(*[(0.1 * i, 100, 600) for i in range(12)])
    simulation = simulate(what, device(blocks=2000), workers=3, placement="freeness")
    simulation.run_until(0.65)
    before = simulation._fleet.workers[0].live
    simulation.drain(0)
    simulation.run_until(6.0)
    worker = simulation._fleet.workers[0]
    assert before > 0
    assert (worker.live, worker.scheduler.census().used_blocks) == (0, 0)
    assert len(simulation._ledger.live) == 12
    outcomes = simulation.run().outcomes
    assert all(outcome.generated == 600 and outcome.worker != "w0" for outcome in outcomes)


def test_without_the_gap_rule_a_request_is_thrown_to_and_fro() -> None:
    """One large request on two workers: the naive rule moves it at every round, ours never."""
    what, on = workload((0.0, 1300, 400)), device(blocks=120)
    naive, ours = (
        simulate(what, on, policy=msgspec.structs.replace(POLICY, low=45.0, high=50.0, gap_rule=rule))
        for rule in (False, True)
    )
    assert naive.run().outcomes[0].generated == ours.run().outcomes[0].generated == 400
    assert len(naive.moved) > 10
    assert {(a.destination, b.source) for a, b in zip(naive.moved, naive.moved[1:], strict=False)} <= {
        ("w0", "w0"),
        ("w1", "w1"),
    }
    assert ours.moved == []


def test_a_quiet_fleet_comes_to_rest() -> None:
    """Once nothing arrives or ends, a few moves settle the balance and then there are none."""
    what = workload(*[(0.02 * i, 100 + 30 * i, 3000) for i in range(12)])
    simulation = simulate(what, device(blocks=3000), workers=4, policy=MigrationPolicy(low=1e9, high=0.0))
    simulation.run_until(10.0)
    assert len(simulation._ledger.live) == 12
    settled = len(simulation.moved)
    simulation.run_until(30.0)
    assert len(simulation._ledger.live) == 12
    assert len(simulation.moved) - settled <= 12


REQUESTS = st.lists(
    st.tuples(st.integers(0, 3000).map(lambda ms: ms / 1000), st.integers(1, 400), st.integers(1, 300)),
    min_size=1,
    max_size=14,
).map(sorted)


@settings(max_examples=25, deadline=None)
@given(
    requests=REQUESTS,
    workers=st.integers(2, 4),
    blocks=st.sampled_from([45, 60, 400]),
    speed=st.sampled_from([1e5, 1e6, 1e9]),
    low=st.sampled_from([5.0, 50.0, 1e9]),
    drained=st.booleans(),
)
def test_a_request_is_in_one_place_at_most(
    requests: list[tuple[float, int, int]], workers: int, blocks: int, speed: float, low: float, drained: bool
) -> None:
    """At every moment of any run no two schedulers know a request, all are served in full, blocks are conserved, and
    skipping steps changes nothing."""
    what, on = workload(*requests), device(blocks=blocks, transfer_bytes_per_s=speed)
    policy = MigrationPolicy(every_s=0.1, low=low, high=0.0)

    def run(skip: bool, watch: bool) -> MigratingSimulation:
        simulation = simulate(what, on, workers=workers, policy=policy, skip=skip)
        simulation.run_until(1.5)
        if drained:
            simulation.drain(0)
        for step in range(200 if watch else 0):
            simulation.run_until(1.5 + 0.037 * step)
            known = Counter(
                live.request.id for worker in simulation._fleet.workers for live in worker.scheduler.requests()
            )
            assert max(known.values(), default=0) <= 1
            for worker in simulation._fleet.workers:
                worker.scheduler.check_integrity()
        simulation.run()
        return simulation

    watched, quick, slow = run(True, True), run(True, False), run(False, False)
    assert all(outcome.generated == outcome.output_tokens for outcome in watched.result().outcomes)
    assert watched.result().outcomes == quick.result().outcomes == slow.result().outcomes
    assert watched.moved == quick.moved == slow.moved
    for move in watched.moved:
        assert move.source != move.destination
        assert not (drained and move.destination == "w0" and move.stopped_s > 2.0)


def test_a_fork_goes_its_own_way_to_the_same_end() -> None:
    """Forked while copies are under way, both end alike."""
    simulation = simulate(lopsided(), device(transfer_bytes_per_s=1e6))
    simulation.run_until(3.0)
    fork = simulation.fork()
    assert isinstance(fork, MigratingSimulation)
    assert fork.run().outcomes == simulation.run().outcomes
    assert fork.moved == simulation.moved
    assert simulation.moved


@pytest.mark.parametrize("placement", ["round-robin", "least-loaded", "prefix-aware", "best-fit", "freeness"])
def test_every_placement_serves_a_fleet(placement: Placement) -> None:
    """All workers get work under each of them."""
    result = simulate(lopsided(), device(blocks=2000), workers=3, placement=placement).run()
    assert {outcome.worker for outcome in result.outcomes} == {"w0", "w1", "w2"}
