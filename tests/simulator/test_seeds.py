"""What each idea of batching is for, in miniature: the experiments of docs/experiments.md as rules."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from statistics import fmean, median

import pytest
from msgspec.structs import replace

from policies.catalog import policy_set
from policies.vocabulary import Contract, Tenant
from simulator.devices import load_device, scaled_kv
from simulator.errors import SimulatorError
from simulator.kinds import make_simulation
from simulator.migrating import MigratingSimulation
from simulator.overrides import changed_policies
from simulator.padding import padded_tokens, padded_workload, ragged_tokens
from simulator.records import Arrival, Device, Outcome, Result, StepRecord, Workload
from simulator.token_gaps import token_gaps, token_instants

OPT = load_device("opt-13b-a100")
LLAMA = load_device("llama2-70b-h100-tp4")


def workload(
    arrivals: Sequence[tuple[float, int, int]], *, max_tokens: int | None = None, contract: Contract | None = None
) -> Workload:
    """(instant, prompt, output) of one tenant."""
    return Workload(
        name="w",
        arrivals=[
            Arrival(str(i), at_s, "t", prompt, output, max_tokens or output)
            for i, (at_s, prompt, output) in enumerate(arrivals)
        ],
        tenants={"t": Tenant(name="t", contract=contract or Contract())},
    )


def run(
    what: Workload, device: Device, policy: str, changes: Mapping[str, object] | None = None, **more: int
) -> Result:
    return make_simulation(what, device, changed_policies(policy, changes or {}), **more).run()


def tokens_per_s(result: Result) -> float:
    return sum(outcome.generated for outcome in result.outcomes) / result.ended_s


def test_padding_computes_a_rectangle() -> None:
    """One prompt of 2,048 and three of 128 are 8,192 tokens padded and 2,432 ragged, counted and as the device ran
    them; and more time is lost than two thirds."""
    lengths = [2048, 128, 128, 128]
    assert (padded_tokens(lengths), ragged_tokens(lengths)) == (8192, 2432)
    assert padded_tokens([]) == ragged_tokens([]) == 0
    what = workload([(0.0, length, 1) for length in lengths])
    device = replace(OPT, tokens_per_step=8192)
    padded = run(padded_workload(what, 4), device, "static", {"batch_size": 4})
    ragged = run(what, device, "static", {"batch_size": 4})
    assert (padded.computed_tokens, ragged.computed_tokens) == (8192, 2432)
    assert padded.ended_s > 3 * ragged.ended_s


def test_padding_goes_by_batches_of_arrivals_and_shares_nothing() -> None:
    """Each batch has its own longest prompt and output; max_tokens stays at least the output."""
    what = workload([(0.0, 10, 5), (0.0, 20, 2), (0.0, 7, 9)])
    what = replace(what, arrivals=[replace(each, prefix=(1,)) for each in what.arrivals])
    padded = padded_workload(what, 2).arrivals
    assert [(a.prompt_tokens, a.output_tokens, a.max_tokens) for a in padded] == [(20, 5, 5), (20, 5, 5), (7, 9, 9)]
    assert all(arrival.prefix == () for arrival in padded)
    with pytest.raises(SimulatorError, match="batch is 0"):
        padded_workload(what, 0)


def gain(outputs: Sequence[int], policy: str) -> float:
    """Tokens/s over those of static batching, with 8 rows each."""
    what = workload([(0.0, 512, output) for output in outputs])
    return tokens_per_s(run(what, OPT, policy, {"batch_size": 8})) / tokens_per_s(
        run(what, OPT, "static", {"batch_size": 8})
    )


@pytest.mark.parametrize("policy", ["continuous", "chunked"])
def test_continuous_over_static_grows_with_the_variance_of_outputs(policy: str) -> None:
    """Of equal mean: constant outputs tie within 5 %, and every wider distribution gains more."""
    rng = random.Random(3)
    constant = [128] * 160
    narrow = [rng.randint(64, 192) for _ in range(160)]
    wide = [rng.randint(1, 255) for _ in range(160)]
    exponential = [min(1536, max(1, round(rng.expovariate(1 / 128)))) for _ in range(160)]
    gains = [gain(outputs, policy) for outputs in (constant, narrow, wide, exponential)]
    assert gains[0] == pytest.approx(1.0, abs=0.05)
    assert gains == sorted(gains)
    assert gains[1] > 1.1
    assert gains[3] > 1.7


def test_memory_that_is_not_held_for_the_worst_case_gains_even_at_constant_outputs() -> None:
    """Where clients ask for far more than they use, reserving the worst case (Orca) fits few rows; taking blocks as
    they fill (vLLM) fits more."""
    what = workload([(0.0, 512, 128)] * 60, max_tokens=1536)
    small = scaled_kv(OPT, 0.25)
    orca, paged = (tokens_per_s(run(what, small, policy)) for policy in ("continuous", "chunked"))
    assert paged > 1.8 * orca


def decode_step_s(device: Device, rows: int) -> float:
    result = make_simulation(workload([(0.0, 32, 24)] * rows), device, policy_set("chunked"), keep_steps=True).run()
    return median(s.ended_s - s.begun_s for s in result.steps_kept if len(s.requests) == rows and not any(s.prefill))


def test_decodes_in_a_batch_cost_little_more_than_one() -> None:
    """32 rows take less than 1.1 times as long as one (OPT-13B on an A100), so they give 29 times the tokens; and more
    rows always give more."""
    steps = {rows: decode_step_s(OPT, rows) for rows in (1, 8, 32, 128)}
    assert steps[32] < 1.1 * steps[1]
    rates = [rows / seconds for rows, seconds in steps.items()]
    assert rates == sorted(rates)
    assert rates[2] > 29 * rates[0]


def stalled(policy: str, changes: Mapping[str, object] | None = None) -> tuple[float, float, float]:
    """The longest gap between tokens of four rows that decode, when a prompt of 8,000 tokens beside them has its first
    one after its arrival, and the worst mean pace of the four."""
    what = workload([*[(0.0, 64, 400)] * 4, (2.0, 8000, 2)], contract=Contract(ttft_ms=60_000, tpot_ms=60))
    device = replace(LLAMA, tokens_per_step=16_384)
    result = make_simulation(what, device, changed_policies(policy, changes or {}), keep_steps=True).run()
    ttft = result.outcomes[4].measured_ttft_s
    assert ttft is not None
    gaps = token_gaps(result.steps_kept, [outcome for outcome in result.outcomes if outcome.prompt_tokens == 64])
    assert len(gaps) == 4 * 399
    paces = [pace for outcome in result.outcomes[:4] if (pace := outcome.measured_tpot_s) is not None]
    return max(gap for _, gap in gaps), ttft, max(paces)


def test_chunks_remove_the_stall_and_the_prompt_pays() -> None:
    """A whole prompt stops everybody for its time; the smaller the budget, the shorter the gap and the later the
    prompt. A budget in time keeps the pace promised, whatever it takes."""
    whole = stalled("continuous")
    large, small = (stalled("chunked", {"chunk_tokens": budget}) for budget in (2048, 256))
    timed = stalled("time-budgeted")
    assert whole[0] > 0.7
    assert whole[0] > 2 * large[0] > 4 * small[0]
    assert whole[1] < large[1] < small[1]
    assert small[0] < 0.07
    assert timed[0] < whole[0] / 2
    assert timed[2] <= 0.06


def test_the_instants_of_tokens_leave_out_what_samples_nothing() -> None:
    """Parts of a prompt give no token, nor does the step that was launched before the end was known."""
    steps = [
        StepRecord("w0", 1, 0.0, 1.0, 1.0, ["a"], [8], [True], 0, 1, 1, 0, 0),
        StepRecord("w0", 2, 1.0, 2.0, 1.0, ["a"], [8], [True], 0, 1, 1, 0, 0),
        StepRecord("w0", 3, 2.0, 3.5, 1.0, ["a"], [1], [False], 0, 1, 1, 0, 0),
        StepRecord("w0", 4, 3.5, 4.5, 1.0, ["a", "b"], [1, 4], [False, True], 0, 1, 1, 0, 0),
    ]
    usual = {"tenant": "t", "tier": 1, "arrived_s": 0.0, "prompt_tokens": 16, "ttft_s": None, "tpot_s": None}
    outcomes = [
        Outcome(id="a", output_tokens=2, first_token_s=2.0, finished_s=3.5, **usual),  # type: ignore[arg-type]
        Outcome(id="b", output_tokens=9, **usual),  # type: ignore[arg-type]
    ]
    assert token_instants(steps, outcomes) == {"a": [2.0, 3.5]}
    assert token_gaps(steps, outcomes) == [(3.5, 1.5)]


def test_mlfq_serves_short_jobs_first_where_tails_are_heavy() -> None:
    """With one job of a thousand outputs in every slot, twelve of four outputs end long before it instead of after."""
    what = workload([*[(0.0, 32, 1000)] * 4, *[(1.0 + i / 10, 32, 4) for i in range(12)]])
    ends = {}
    for policy in ("chunked", "mlfq"):
        outcomes = run(what, OPT, policy, {"batch_size": 4}).outcomes
        ends[policy] = fmean(o.finished_s - o.arrived_s for o in outcomes[4:] if o.finished_s is not None)
    assert ends["mlfq"] < ends["chunked"] / 20


def test_longest_prefix_first_hits_what_fcfs_has_lost() -> None:
    """Two conversations in turns, in memory for one: FCFS computes every prompt anew, LPM most of them once."""
    arrivals = [Arrival(str(i), 0.001 * i, "t", 1040, 4, 4, (0, 1) if i % 2 else (10, 11)) for i in range(24)]
    what = Workload(name="w", arrivals=arrivals, tenants={"t": Tenant(name="t")})
    device = replace(OPT, blocks=72, max_context=1100)
    hits = {
        order: sum(o.cached_tokens for o in run(what, device, "chunked", {"order": order, "batch_size": 1}).outcomes)
        for order in ("fcfs", "lpm")
    }
    assert hits["fcfs"] < 0.1 * 22 * 1024
    assert hits["lpm"] > 0.8 * 22 * 1024


def test_prefill_and_decode_apart_keep_a_pace_that_mixed_workers_break() -> None:
    """Long prompts on two workers: mixed, every prompt makes those that decode wait; apart, none does."""
    what = workload([(0.5 * i, 4000, 60) for i in range(40)])
    device = replace(load_device("llama2-70b-h100-tp8"), tokens_per_step=16_384)
    worst = {}
    for policy in ("continuous", "disaggregated"):
        outcomes = run(what, device, policy, {"placement": "least-loaded"}, workers=2).outcomes
        worst[policy] = max(tpot for o in outcomes if (tpot := o.measured_tpot_s) is not None)
    assert worst["disaggregated"] < 0.036
    assert worst["continuous"] > 1.15 * worst["disaggregated"]


def test_migration_spares_preemptions_and_pauses_are_noted() -> None:
    """Long outputs that all fell to one worker outgrow its memory beside one that is nearly idle: with live migration
    fewer give way. A pause that a preemption caused is in the outcome, with migration too."""
    what = workload([(0.01 * i, 64, 700 if i % 2 == 0 else 8) for i in range(48)], max_tokens=1024)
    device = replace(scaled_kv(OPT, 0.15), host_blocks=0)
    policies = changed_policies("llumnix", {"placement": "round-robin"})
    still = make_simulation(what, device, replace(policies, migration=False), workers=2).run()
    simulation = MigratingSimulation(what, device, policies, workers=2)
    moving = simulation.run()
    assert simulation.moved
    assert 0 < sum(o.preemptions for o in moving.outcomes) < sum(o.preemptions for o in still.outcomes)
    for result in (still, moving):
        paused = [o for o in result.outcomes if o.preemptions and o.generated > 1]
        assert any(o.longest_gap_s > 0.5 for o in paused)


def test_early_rejection_by_prediction_swings_less_and_keeps_more() -> None:
    """Long prefills in front of few decodes, at several times their capacity: judged by the load of now, decode swings
    between empty and more than it bears, and many break their pace; judged by the load at the end of the prefill, it
    swings less, and half as many again keep theirs."""
    what = workload([(i / 8, 12_000, 60) for i in range(320)], contract=Contract(ttft_ms=10_000, tpot_ms=38))
    device = replace(LLAMA, tokens_per_step=16_384)
    met, least = {}, {}
    for kind in ("mooncake-naive", "mooncake"):
        policies = replace(changed_policies("disaggregated", {"admission": kind}), prefill_workers=8)
        result = make_simulation(what, device, policies, workers=9, keep_steps=True).run()
        met[kind] = sum(outcome.met for outcome in result.outcomes)
        rows = [len(s.requests) for s in result.steps_kept if s.worker == "w8" and 15 < s.begun_s < 40]
        least[kind] = (min(rows), max(rows))
    assert met["mooncake"] > 1.5 * met["mooncake-naive"]
    assert least["mooncake"][1] - least["mooncake"][0] < least["mooncake-naive"][1] - least["mooncake-naive"][0]
