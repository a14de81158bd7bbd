"""Prefill and decode on different workers: exact times, nothing used before it is there, nothing lost."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission import Policy
from policies.catalog import policy_set
from policies.disaggregation import kv_bytes
from policies.vocabulary import Contract, StepTimeCoefficients, Tenant
from simulator.disaggregated import DisaggregatedSimulation
from simulator.errors import BadFleet
from simulator.kinds import make_simulation
from simulator.migrating import MigratingSimulation
from simulator.pooled import PooledSimulation
from simulator.records import Arrival, Device, StepRecord, Workload
from simulator.simulation import Simulation

POLICIES = policy_set("disaggregated")
BLOCK = 1000  # bytes
#: A step takes 0.5 s and 1 ms a token: no step ends where a transfer does.
SLOW = StepTimeCoefficients(0.0, 0.5, 0.001)


def device(*, blocks: int = 1000, slots: int = 64, transfer_bytes_per_s: float = 1e5) -> Device:
    return Device(
        name="test",
        blocks=blocks,
        host_blocks=0,
        block_bytes=BLOCK,
        slots=slots,
        tokens_per_step=4096,
        max_context=4096,
        swap_bytes_per_s=1e9,
        step_time=SLOW,
        transfer_bytes_per_s=transfer_bytes_per_s,
    )


def workload(*requests: tuple[float, int, int]) -> Workload:
    """Requests by (arrival, prompt, outputs)."""
    arrivals = [Arrival(f"r{i}", at, "t", prompt, outputs, outputs) for i, (at, prompt, outputs) in enumerate(requests)]
    return Workload(name="test", arrivals=arrivals, tenants={"t": Tenant(name="t")})


def simulate(
    what: Workload,
    on: Device,
    *,
    workers: int = 2,
    reserve: Literal["arrival", "prefill-end"] = "prefill-end",
    latency_s: float = 0.0,
    keep_steps: bool = False,
    skip: bool = True,
    prefill_workers: int = 0,
) -> DisaggregatedSimulation:
    return DisaggregatedSimulation(
        what,
        on,
        msgspec.structs.replace(POLICIES, prefill_workers=prefill_workers),
        workers=workers,
        reserve=reserve,
        latency_s=latency_s,
        keep_steps=keep_steps,
        skip=skip,
    )


def test_a_request_alone_takes_its_prefill_the_transfer_and_its_decodes() -> None:
    """One step for the prompt and the first output, ten blocks over the link, and a step for each other output."""
    result = simulate(workload((1.0, 160, 5)), device()).run()
    (outcome,) = result.outcomes
    assert outcome.first_token_s == pytest.approx(1.0 + 0.5 + 0.160)
    assert outcome.finished_s == pytest.approx(1.0 + 0.660 + 10 * BLOCK / 1e5 + 4 * 0.501)
    assert (outcome.generated, outcome.worker) == (5, "w1")
    assert result.transferred_bytes == 10 * BLOCK


def test_a_single_output_needs_no_decode_worker() -> None:
    """The prefill gives it, and nothing is sent."""
    result = simulate(workload((0.0, 160, 1)), device()).run()
    assert (result.transferred_bytes, result.outcomes[0].worker) == (0, "w0")
    assert result.outcomes[0].finished_s == pytest.approx(0.66)


def test_transfers_share_the_links_of_their_ends() -> None:
    """Two prompts that end together are pulled one after the other: the second one waits for the link."""
    what = workload((0.0, 1600, 2), (0.0, 1600, 2))
    first, second = simulate(what, device()).run().outcomes
    prefilled = 0.5 + 3.2
    assert first.finished_s == pytest.approx(prefilled + 1.0 + 0.501)
    assert second.finished_s == pytest.approx(prefilled + 2.0 + 0.501)
    apart = simulate(what, device(), workers=4).run().outcomes  # two of each
    assert [outcome.finished_s for outcome in apart] == [pytest.approx(0.5 + 1.6 + 1.0 + 0.501)] * 2


def test_latency_delays_every_finish_by_itself() -> None:
    """While decode slots are free and steps meet nobody else, x seconds more of transfer are x seconds more in all."""
    what = workload(*[(10.0 * i, 100 + i, 4) for i in range(5)])
    base, late = (simulate(what, device(), latency_s=x).run().outcomes for x in (0.0, 0.3))
    assert [b.finished_s for b in late] == [pytest.approx((a.finished_s or 0) + 0.3) for a in base]
    assert [b.first_token_s for b in late] == [a.first_token_s for a in base]


def test_decoding_is_never_stalled_by_a_prefill() -> None:
    """Long prompts that come meanwhile leave the pace of what decodes as it is; on mixed workers they would not."""
    what = workload((0.0, 16, 40), *[(2.0 + i, 3000, 2) for i in range(5)])
    result = simulate(what, device(), keep_steps=True).run()
    decodes = [record for record in result.steps_kept if record.worker == "w1"]
    assert all(count == 1 for record in decodes for count in record.counts)
    assert max(record.ended_s - record.begun_s for record in decodes) < 0.51


def test_what_finds_no_room_waits_and_holds_its_blocks_where_it_is() -> None:
    """Three fit on the decode worker; the others' KV stays at the prefill worker, and they follow in their order."""
    what = workload(*[(0.1 * i, 320, 20) for i in range(6)])
    simulation = simulate(what, device(blocks=65))
    simulation.run_until(7.0)
    prefill, decode = (worker.scheduler.census() for worker in simulation._fleet.workers)
    assert decode.waiting + decode.running == 3
    assert (prefill.used_blocks, prefill.running) == (3 * 20, 0)
    simulation.run_until(float("inf"))
    finished = [outcome.finished_s or 0 for outcome in simulation.result().outcomes]
    assert finished == sorted(finished)
    simulation._check()


def test_room_may_be_made_before_the_prefill() -> None:
    """With `reserve="arrival"` the decode worker holds blocks while the prompt is being computed."""
    what = workload((0.0, 1600, 5))
    for reserve, held in (("arrival", True), ("prefill-end", False)):
        simulation = simulate(what, device(), reserve=reserve)  # type: ignore[arg-type]
        simulation.run_until(1.0)
        assert bool(simulation._fleet.workers[1].scheduler.census().used_blocks) == held
        assert simulation.run().outcomes[0].generated == 5


def test_room_held_before_a_prefill_is_given_to_who_is_prefilled() -> None:
    """One waits for room that another holds, which waits for memory that the first one fills: neither would ever go on,
    if the room of the one that is not prefilled could not be taken back."""
    what = workload((0.458, 481, 13), (1.107, 659, 3), (2.436, 696, 14), (3.841, 302, 4))
    outcomes = simulate(what, device(blocks=60, transfer_bytes_per_s=1e6), reserve="arrival").run().outcomes
    assert [outcome.generated for outcome in outcomes] == [13, 3, 14, 4]


def test_a_fleet_needs_both_kinds() -> None:
    """One worker cannot be split, and not all of them can prefill."""
    for workers, prefill in ((1, 0), (3, 3)):
        with pytest.raises(BadFleet, match="at least one of each kind"):
            simulate(workload((0.0, 16, 2)), device(), workers=workers, prefill_workers=prefill)


def test_what_no_decode_worker_could_hold_is_refused_at_once() -> None:
    """Not after its prefill."""
    result = simulate(workload((0.0, 4000, 200), (0.0, 16, 2)), device()).run()
    assert [(outcome.decision, outcome.reason) for outcome in result.outcomes] == [
        ("refused", "unservable"),
        ("admitted", ""),
    ]


REQUESTS = st.lists(
    st.tuples(st.integers(0, 4000).map(lambda ms: ms / 1000), st.integers(1, 700), st.integers(1, 40)),
    min_size=1,
    max_size=20,
).map(sorted)


@settings(max_examples=40, deadline=None)
@given(
    requests=REQUESTS,
    workers=st.integers(2, 5),
    blocks=st.sampled_from([60, 100, 1000]),
    slots=st.sampled_from([1, 3, 64]),
    reserve=st.sampled_from(["arrival", "prefill-end"]),
    speed=st.sampled_from([1e4, 1e6]),
)
def test_kv_is_never_used_before_it_is_there(
    requests: list[tuple[float, int, int]],
    workers: int,
    blocks: int,
    slots: int,
    reserve: Literal["arrival", "prefill-end"],
    speed: float,
) -> None:
    """Whatever the load, memory and links: a request's steps at its decode worker begin after its KV has come, so after
    its prefill and the time that its bytes take; everybody is served in full; skipping steps changes nothing."""
    what, on = workload(*requests), device(blocks=blocks, slots=slots, transfer_bytes_per_s=speed)
    result = simulate(what, on, workers=workers, reserve=reserve, keep_steps=True).run()
    prompts = {arrival.id: arrival.prompt_tokens for arrival in what.arrivals}
    first, last = _spans(result.steps_kept, workers // 2)
    for request, begun_s in first.items():
        assert begun_s >= last[request] + kv_bytes(prompts[request], BLOCK) / speed - 1e-9
    assert all(outcome.generated == outcome.output_tokens for outcome in result.outcomes)
    moved = [prompts[outcome.id] for outcome in result.outcomes if outcome.output_tokens > 1]
    assert result.transferred_bytes == sum(kv_bytes(tokens, BLOCK) for tokens in moved)
    quick = simulate(what, on, workers=workers, reserve=reserve).run()
    slow = simulate(what, on, workers=workers, reserve=reserve, skip=False).run()
    assert quick.outcomes == slow.outcomes == result.outcomes
    assert quick.steps == slow.steps


def _spans(records: list[StepRecord], prefill: int) -> tuple[dict[str, float], dict[str, float]]:
    """When each request first ran on a decode worker, and until when it ran on a prefill worker."""
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    for record in records:
        for request in record.requests:
            if int(record.worker[1:]) < prefill:
                last[request] = max(last.get(request, 0.0), record.ended_s)
            else:
                first[request] = min(first.get(request, record.begun_s), record.begun_s)
    return first, last


def test_a_fork_goes_its_own_way_to_the_same_end() -> None:
    """Forked in the middle, with KV on its way, both end alike; neither notices the other."""
    what = workload(*[(0.3 * i, 300 + 7 * i, 12) for i in range(20)])
    simulation = simulate(what, device(), workers=4)
    simulation.run_until(4.0)
    fork = simulation.fork()
    first, second = fork.run(), simulation.run()
    assert first.outcomes == second.outcomes == simulate(what, device(), workers=4).run().outcomes
    assert first.transferred_bytes == second.transferred_bytes


def swinging(kind: Literal["none", "mooncake", "mooncake-naive"]) -> tuple[float, int, int]:
    """Long prompts on many prefill workers before one decode worker, at three times what its pace allows.

    Returns from the least to the most that decode at once, as a share of the most; how many were let in; and how many
    of them kept their pace.
    """
    outputs, batch = 100, 20
    on = msgspec.structs.replace(
        device(blocks=20_000, slots=500, transfer_bytes_per_s=1e12),
        tokens_per_step=512,  # so that each worker computes one prompt at a time
        step_time=StepTimeCoefficients(0.0, 0.02, 0.0058, per_row_s=0.002),
    )
    pace_s = 0.02 + (0.0058 + 0.002) * batch + 0.001
    contract = Contract(ttft_ms=60_000.0, tpot_ms=pace_s * 1000)
    rate = 3 * batch / (outputs * pace_s)
    arrivals = [Arrival(f"r{i:04}", i / rate, "t", 512, outputs, outputs) for i in range(round(rate * 240))]
    what = Workload(name="test", arrivals=arrivals, tenants={"t": Tenant(name="t", contract=contract)})
    workers = 32
    policies = msgspec.structs.replace(POLICIES, prefill_workers=workers - 1, admission=Policy(kind=kind))
    simulation = DisaggregatedSimulation(what, on, policies, workers=workers)
    running = []
    for second in range(80, 230):
        simulation.run_until(float(second))
        running.append(simulation._fleet.workers[-1].scheduler.census().running)
    outcomes = simulation.run().outcomes
    admitted = [outcome for outcome in outcomes if outcome.admitted]
    return (max(running) - min(running)) / max(running), len(admitted), sum(outcome.met for outcome in admitted)


def test_naive_early_rejection_oscillates_and_the_predicted_does_not() -> None:
    """Mooncake, on real schedulers: judged by the load of now, decoding swings between nearly nobody and far too many,
    and most that were let in miss their pace; judged by the end of the prefill, it is steady and all keep it."""
    swing, let_in, met = swinging("mooncake-naive")
    assert swing > 0.8
    assert met < 0.5 * let_in
    swing, let_in, met = swinging("mooncake")
    assert swing < 0.2
    assert met == let_in
    assert let_in > 250


def test_an_admission_that_foresees_mixed_workers_is_refused() -> None:
    """The message says which there are."""
    policies = msgspec.structs.replace(POLICIES, admission=Policy(kind="contract"))
    with pytest.raises(BadFleet, match="takes none, mooncake or mooncake-naive"):
        DisaggregatedSimulation(workload((0.0, 16, 2)), device(), policies)


def test_a_policy_set_says_which_simulation_it_is() -> None:
    """By its roles, and by whether requests move; on one worker nothing can."""
    what, on = workload((0.0, 16, 2)), device()
    chosen = [
        type(make_simulation(what, on, policy_set(name), workers=workers))
        for name, workers in (("disaggregated", 2), ("splitwise", 2), ("llumnix", 2), ("llumnix", 1), ("chunked", 2))
    ]
    assert chosen == [DisaggregatedSimulation, PooledSimulation, MigratingSimulation, Simulation, Simulation]


def burst() -> Workload:
    """Long prompts with few outputs for a while, then short ones with many."""
    return workload(*[(0.2 * i, 1500, 3) for i in range(30)], *[(40.0 + 0.2 * i, 50, 60) for i in range(30)])


def pooled(what: Workload, *, workers: int = 4, skip: bool = True, blocks: int = 1000) -> PooledSimulation:
    return PooledSimulation(
        what,
        device(blocks=blocks),
        policy_set("splitwise"),
        workers=workers,
        skip=skip,
        borrow_at={"prefill": 4000.0, "decode": 8.0},
        return_at={"prefill": 500.0, "decode": 2.0},
    )


def test_the_mixed_pool_helps_where_the_queue_is() -> None:
    """A burst of prompts is computed by decode workers too, and a burst of decodes is shared by prefill workers; first
    tokens come sooner than with fixed roles, and in the end everybody is back at its own work."""
    fixed = simulate(burst(), device(), workers=4).run()
    simulation = pooled(burst())
    roles = set()
    for second in range(80):
        simulation.run_until(float(second))
        roles |= {(name, simulation._pool.role(name)) for name in ("w0", "w1", "w2", "w3")}
    result = simulation.run()
    assert {name for name, role in roles if role == "mixed"} & {"w2", "w3"}
    assert {name for name, role in roles if role == "mixed"} & {"w0", "w1"}
    assert [simulation._pool.role(f"w{i}") for i in range(4)] == ["prefill", "prefill", "decode", "decode"]
    first = [sum(o.measured_ttft_s or 0 for o in outcomes[:30]) for outcomes in (result.outcomes, fixed.outcomes)]
    assert first[0] < 0.8 * first[1]


@settings(max_examples=25, deadline=None)
@given(requests=REQUESTS, workers=st.integers(3, 5), blocks=st.sampled_from([60, 1000]))
def test_the_mixed_pool_loses_nobody(requests: list[tuple[float, int, int]], workers: int, blocks: int) -> None:
    """Whoever is borrowed and given back meanwhile: all are served in full, and skipping steps changes nothing."""
    what = workload(*requests)
    quick, slow = (pooled(what, workers=workers, skip=skip, blocks=blocks).run() for skip in (True, False))
    assert quick.outcomes == slow.outcomes
    assert all(outcome.generated == outcome.output_tokens for outcome in quick.outcomes)
