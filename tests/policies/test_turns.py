"""Who sits out a step, with slot and blocks, and that nobody does for long."""

from __future__ import annotations

from math import ceil

from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import SchedulerConfig
from policies.events import Preempted
from policies.pace import aimed_s
from policies.vocabulary import Step, StepTimeCoefficients

#: 5 ms and a millisecond a row.
BY_ROWS = FixedStepTime(StepTimeCoefficients(0.005, 0.005, 0.0, per_row_s=0.001))


def named(h: Harness, step: Step) -> set[str]:
    """Whose rows are in a step."""
    return {h._tables[slot][0][0] for slot in step.slots}


def decode_all(h: Harness) -> None:
    """Until nobody has a prompt left, and nothing is in flight."""
    while h.core._running.prefilling or h.core.in_flight or not h.core._running.decoding:
        if h.core._running.prefilling or not h.core._running.decoding:
            h.plan()
        h.execute()
        h.complete()


def flexible(*, flex: int, tpot_s: float, tokens: int = 64, slots: int = 16) -> Harness:
    """One row with a pace and many without a contract, all decoding, and nobody ahead."""
    config = SchedulerConfig(flex_yields=True, steps_in_flight=1)
    h = Harness(worker_spec(slots=slots, blocks=400, tokens_per_step=tokens), config, step_time=BY_ROWS)
    for i in range(flex):
        h.submit(make_request(f"f{i}", [i] * 3, 400, tier=2))
    h.submit(make_request("c", [99] * 3, 400, tpot_s=tpot_s))
    decode_all(h)
    (row,) = [row for row in h.core._running.decoding if row.tpot_s]
    assert row.first_token_at is not None
    h.now = row.first_token_at + (row.generated - 1) * aimed_s(tpot_s)  # neither ahead nor behind
    return h


def run_step(h: Harness, tpot_s: float) -> set[str]:
    step = h.plan()
    assert step is not None
    h.execute()
    h.now += aimed_s(tpot_s)
    h.complete()
    return named(h, step)


def test_flex_sits_out_as_far_as_a_promised_pace_needs() -> None:
    """A pace a little over 10 ms has room for five rows: the contract's and four others, in turn."""
    h = flexible(flex=10, tpot_s=0.0104)
    seen = [run_step(h, 0.0104) for _ in range(10)]
    assert all("c" in step and len(step) == 5 for step in seen)
    assert sorted({sum(f"f{i}" in step for step in seen) for i in range(10)}) == [3, 4, 5]


def test_nobody_sits_out_for_more_than_32_steps() -> None:
    """Where the pace has no room at all, of n flex rows n / 32 still take part in each step."""
    h = flexible(flex=40, tpot_s=0.0063, slots=64)
    last = dict.fromkeys([f"f{i}" for i in range(40)], 0)
    for number in range(1, 100):
        step = run_step(h, 0.0063)
        assert "c" in step
        assert number <= 32 or len(step) <= 1 + ceil(40 / 32), "later than those who sat out before this began"
        for name in last:
            if name in step:
                last[name] = number
            assert number - last[name] <= 32


def test_without_a_pace_to_keep_everybody_decodes() -> None:
    """Flex yields to contracts, not to nobody; and only if the operator said so."""
    h = flexible(flex=10, tpot_s=0.02)
    assert len(run_step(h, 0.02)) == 11
    h.cancel("c")
    assert len(run_step(h, 0.02)) == 10


def test_who_sat_out_goes_on_where_it_was() -> None:
    """With two steps in flight outputs are exact, whoever missed whichever steps."""
    config = SchedulerConfig(flex_yields=True, preemption="recompute")
    h = Harness(worker_spec(slots=8, blocks=20), config, step_time=BY_ROWS)
    for i in range(6):
        h.submit(make_request(f"f{i}", [i] * 20, 30, tier=2))
    for i in range(2):
        h.submit(make_request(f"c{i}", [50 + i] * 20, 40, tpot_s=0.0085))
    h.run()
    h.check_end()
    assert len({len(step.slots) for step in h.core.unacknowledged()}) == 0


# Feedback queue


def feedback(**options: object) -> Harness:
    config = SchedulerConfig(
        order="mlfq",
        batching="chunked",
        steps_in_flight=1,
        mlfq_quantum_s=0.02,
        **options,  # type: ignore[arg-type]
    )
    return Harness(worker_spec(slots=4, blocks=100), config, step_time=BY_ROWS)


def test_short_jobs_run_while_long_ones_sit_out_with_their_blocks() -> None:
    """Of those that hold KV only the `batch_size` best take part, and nobody is preempted for it."""
    h = feedback(batch_size=2)
    for name in ("long0", "long1"):
        h.submit(make_request(name, [ord(name[-1])] * 4, 60))
    for _ in range(12):
        h.now += 0.01
        step = h.plan()
        assert step is not None
        h.execute()
        h.complete()
    for name in ("short0", "short1"):
        h.submit(make_request(name, [ord(name[-1])] * 5, 3))
    seen = []
    for _ in range(4):
        h.now += 0.01
        step = h.plan()
        assert step is not None
        seen.append(named(h, step))
        h.execute()
        h.complete()
    assert seen == [{"short0", "short1"}] * 3 + [{"long0", "long1"}]
    assert not any(isinstance(event, Preempted) for event in h.events)
    h.run()
    h.check_end()


def test_a_long_job_gives_its_slot_to_one_of_a_better_level() -> None:
    """With all slots taken, the row of the lowest level goes, and comes back when the short one is over."""
    h = feedback(max_preemptions=2, min_run_steps=4)
    for i in range(4):
        h.submit(make_request(f"long{i}", [i] * 4, 60))
    for _ in range(12):
        h.now += 0.01
        h.plan()
        h.execute()
        h.complete()
    h.submit(make_request("short", [9] * 4, 3))
    for _ in range(5):
        h.now += 0.01
        h.plan()
        h.execute()
        h.complete()
    assert ("short", 1) in h.finished
    assert [event.request for event in h.events if isinstance(event, Preempted)] == ["long3"]
    h.run()
    h.check_end()


def test_rows_that_no_waiting_one_can_replace_do_not_sit_out() -> None:
    """A better row without blocks to start takes nobody's turn: the device is never idle for it."""
    config = SchedulerConfig(order="mlfq", batching="chunked", batch_size=1, mlfq_quantum_s=0.02, max_preemptions=0)
    h = Harness(worker_spec(slots=4, blocks=8), config, step_time=BY_ROWS)
    h.submit(make_request("long", [1] * 60, 60))
    for _ in range(10):
        h.plan()
        h.execute()
        h.complete()
    h.submit(make_request("blocked", [2] * 20, 40))
    h.run()
    h.check_end()
