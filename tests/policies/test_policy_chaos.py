"""Every combination of batching, order and preemption keeps what no policy may break."""

from __future__ import annotations

import random
from typing import get_args

import pytest
from harness import Harness, make_request, worker_spec
from hypothesis import given
from hypothesis import strategies as st

from policies.config import Batching, Order, Preemption, SchedulerConfig
from policies.vocabulary import BLOCK_SIZE

configs = st.builds(
    SchedulerConfig,
    steps_in_flight=st.integers(1, 3),
    batching=st.sampled_from(get_args(Batching)),
    batch_size=st.sampled_from([0, 1, 3]),
    batch_timeout_s=st.sampled_from([0.0, 0.05]),
    chunk_tokens=st.sampled_from([0, 2, 20]),
    max_chunk=st.sampled_from([0, 0, 1, 7]),
    min_chunk=st.sampled_from([1, 64]),
    order=st.sampled_from(get_args(Order)),
    aging_s=st.sampled_from([0.05, 10.0]),
    mlfq_quantum_s=st.sampled_from([0.01, 0.05]),
    mlfq_levels=st.sampled_from([1, 4]),
    starvation_s=st.sampled_from([0.2, 3.0]),
    patience_s=st.sampled_from([0.1, 30.0]),
    preemption=st.sampled_from(get_args(Preemption)),
    max_preemptions=st.integers(0, 3),
    preempt_for_tier=st.booleans(),
    min_run_steps=st.sampled_from([0, 3]),
    flex_yields=st.booleans(),
    single_flight_tokens=st.sampled_from([16, 1024]),
)


@given(config=configs, seed=st.integers(0, 2**32))
def test_everybody_gets_their_own_outputs_under_every_policy(config: SchedulerConfig, seed: int) -> None:
    """Nobody is lost, starved or served twice, blocks are conserved, and no step exceeds what the worker takes."""
    rnd = random.Random(seed)
    spec = worker_spec(
        blocks=rnd.choice([8, 16, 40]),
        host_blocks=rnd.choice([0, 40]),
        slots=rnd.choice([1, 4, 8]),
        tokens_per_step=rnd.choice([8, 64]),
    )
    h = Harness(spec, config, vocabulary=rnd.choice([7, 1000]))
    size = min(config.batch_size or spec.slots, spec.slots)
    requests = 4 * size if config.batching == "static" else 15
    submitted = 0
    gathered = config.batching in ("static", "dynamic")
    while submitted < requests or h.core.requests() or h.core.in_flight:
        h.now += 0.01
        assert h.now < 60, "some requests never end"
        company = (
            config.batching == "static" and 0 < len(h.core.requests()) < size
        )  # what the rest of a batch waits for
        if (submitted < requests or (company and not len(h.core._running))) and rnd.random() < 0.3:
            submitted += 1
            outputs = rnd.randint(1, 30)
            prompt = ([3] * 80)[: rnd.choice([0, 16, 40])] + [rnd.randrange(h.vocabulary) for _ in range(20)]
            h.submit(
                make_request(
                    f"r{submitted}",
                    prompt[: spec.blocks * BLOCK_SIZE - outputs],
                    outputs,
                    tenant=rnd.choice("xyz"),
                    tier=rnd.randint(0, 2),
                    ttft_s=rnd.choice([None, 0.05, 1.0]),
                    tpot_s=rnd.choice([None, 0.011]),
                )
            )
        if not gathered and rnd.random() < 0.02 and h.requests:
            h.cancel(rnd.choice(list(h.requests)))
        if rnd.random() < 0.7 and not (gathered and not h.core.in_flight):
            h.plan()
        elif gathered and not h.core.in_flight and (step := h.core.plan(h.now)) is not None:
            h.steps.append(step)  # it may be idle while a batch gathers
            h.planned = step.number
            h._take_events()
            h.core.check_integrity()
            h._audit(step, preempted=False, alone=False)
        if rnd.random() < 0.7:
            h.execute()
        if h.results and rnd.random() < 0.7:
            h.complete()
    h.check_end()


@pytest.mark.parametrize("order", get_args(Order))
def test_a_flood_starves_nobody_in_any_order(order: str) -> None:
    """One modest request ends while others with every advantage keep coming."""
    config = SchedulerConfig(
        order=order,  # type: ignore[arg-type]
        batching="chunked",
        aging_s=0.5,
        patience_s=0.5,
        starvation_s=0.5,
        preempt_for_tier=order in ("contract", "priority"),
    )
    h = Harness(worker_spec(slots=2), config)
    for i in range(4):
        h.submit(make_request(f"early{i}", [i] * 4, 6, tier=0, ttft_s=0.1, tenant=f"t{i}"))
    h.submit(make_request("modest", [9] * 40, 6, tier=2, tenant="modest"))
    for i in range(600):
        h.now += 0.01
        if not i % 3:
            h.submit(make_request(f"f{i}", [9] * 2, 6, tier=0, ttft_s=0.1, tenant=f"n{i}"))
        while h.plan() is not None:
            pass
        h.execute()
        h.complete()
        if ("modest", 1) in h.finished:
            return
    raise AssertionError("starved")
