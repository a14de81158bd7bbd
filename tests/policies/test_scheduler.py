"""The scheduler of one worker: batching, memory, preemption, ends, and what it tells."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import SchedulerConfig
from policies.errors import StepRefused, Unservable, WorkerMismatch
from policies.events import Finished, FirstToken, Preempted, Scheduled
from policies.pace import aimed_s
from policies.vocabulary import Finish, Step, StepDone, StepTimeCoefficients, pack_tokens, unpack_tokens

#: Long enough that no output of a test is the stop token by chance.
NO_EOS = 1_000_003


def harness(config: SchedulerConfig | None = None, *, vocabulary: int = NO_EOS, **spec: int) -> Harness:
    return Harness(worker_spec(**spec), config, vocabulary=vocabulary)


def turn(h: Harness) -> Step:
    """One step, planned, executed and acknowledged."""
    step = h.plan()
    assert step is not None
    h.execute()
    h.complete()
    return step


def events_of(h: Harness, kind: type, request: str | None = None) -> list[object]:
    return [e for e in h.events if isinstance(e, kind) and (request is None or e.request == request)]


# Batching


def test_a_prompt_is_computed_in_chunks_of_what_the_step_has_left() -> None:
    """Chunks fill the token budget; the last one samples; then a token a step."""
    h = harness(tokens_per_step=64)
    h.submit(make_request("a", [1] * 150, 3))
    assert [turn(h).counts for _ in range(5)] == [[64], [64], [22], [1], [1]]
    assert h.plan() is None
    h.check_end()


def test_decodes_never_wait_for_prompts() -> None:
    """Stall-free: while a long prompt is prefilled, every running row decodes in every step."""
    h = harness(tokens_per_step=32)
    h.submit(make_request("a", [1] * 8, 30))
    turn(h)
    h.submit(make_request("b", [2] * 200, 2))
    steps = [turn(h) for _ in range(7)]
    assert all(step.counts[0] == 1 for step in steps)
    assert [step.counts[1] for step in steps] == [31] * 6 + [14]


def test_a_better_ranked_newcomer_goes_before_a_partial_prompt() -> None:
    """A long prompt of a lower class does not hold the budget against one with a deadline."""
    h = harness(tokens_per_step=32)
    h.submit(make_request("flex", [1] * 200, 2, tier=2))
    turn(h)
    h.submit(make_request("urgent", [2] * 20, 2, tier=0, ttft_s=0.1))
    step = turn(h)
    assert [new.request for new in step.new] == ["urgent"]
    assert step.counts == [20, 12]


def test_a_chunk_keeps_the_tightest_running_pace() -> None:
    """The chunk is the largest whose predicted step stays under the running row's pace, but never below the floor."""
    coefficients = StepTimeCoefficients(0.0, 0.002, 0.0001)  # 2 ms and 0.1 ms a token
    for tpot_s, expected in ((0.0125, 96), (0.004, 16), (None, 511)):
        h = Harness(
            worker_spec(tokens_per_step=512, blocks=200), vocabulary=NO_EOS, step_time=FixedStepTime(coefficients)
        )
        h.submit(make_request("a", [1] * 8, 50, tpot_s=tpot_s))
        turn(h)
        h.submit(make_request("b", [2] * 511, 1))
        assert turn(h).counts == [1, expected]


def test_a_row_ahead_of_its_pace_lends_its_lead() -> None:
    """Outputs that came early allow a larger chunk than the pace alone would."""
    coefficients = StepTimeCoefficients(0.0, 0.002, 0.0001)
    counts = []
    for elapsed_s in (0.0, 0.12):
        h = Harness(
            worker_spec(tokens_per_step=512, blocks=200), vocabulary=NO_EOS, step_time=FixedStepTime(coefficients)
        )
        h.submit(make_request("a", [1] * 8, 50, tpot_s=0.0125))
        for _ in range(11):
            turn(h)
        h.now += elapsed_s
        h.submit(make_request("b", [2] * 500, 1))
        counts.append(turn(h).counts[1])
    assert counts[0] > counts[1] == 96


def test_new_rows_of_a_step_are_bounded_in_size() -> None:
    """A plan carries at most so many tokens of new rows, unless a single one has more."""
    h = harness(SchedulerConfig(new_tokens_per_step=50), tokens_per_step=512)
    for name, length in (("a", 200), ("b", 30), ("c", 20), ("d", 1)):
        h.submit(make_request(name, [ord(name)] * length, 5))
    assert [[new.request for new in turn(h).new] for _ in range(3)] == [["a"], ["b", "c"], ["d"]]


def test_every_running_row_fits_the_step() -> None:
    """A worker whose steps are smaller than its slots runs no more rows than it has tokens."""
    h = harness(slots=8, tokens_per_step=4)
    for i in range(8):
        h.submit(make_request(f"r{i}", [i + 1], 5))
    h.run()
    h.check_end()
    assert h.core.load(0.0, "w").slots == 4


# Two steps in flight


def test_a_step_is_planned_before_the_result_of_the_last() -> None:
    """Up to the limit; the sampled token of a step is a placeholder in the next."""
    h = harness()
    h.submit(make_request("a", [1] * 8, 10))
    assert [h.plan() is not None for _ in range(3)] == [True, True, False]
    assert [step.number for step in h.core.unacknowledged()] == [1, 2]
    assert h.core.unacknowledged()[1].counts == [1]
    h.run()
    h.check_end()


def test_a_row_that_is_surely_over_is_not_planned_again() -> None:
    """With its last output in flight, a row is left out, though nobody knows that output yet."""
    h = harness()
    h.submit(make_request("a", [1] * 8, 2))
    h.submit(make_request("b", [2] * 8, 9))
    h.plan()
    h.plan()
    h.execute()
    h.complete()
    step = h.plan()
    assert step is not None
    assert len(step.slots) == 1


def test_what_a_stopped_row_was_given_too_much_is_discarded() -> None:
    """A row that ended on a stop token in step n runs in n + 1 for nothing: its outputs are counted without."""
    h = harness(vocabulary=3)
    for i in range(6):
        h.submit(make_request(f"r{i}", [1] * (i + 1), 60))
    h.run()
    h.check_end()
    assert {end.finish for end in h.finished.values()} == {Finish.stop}


def test_results_may_come_twice_and_out_of_order() -> None:
    """A result that is early waits, one that is old is ignored, and one of an unplanned step is an error."""
    h = harness()
    h.submit(make_request("a", [1] * 8, 10))
    h.plan()
    h.plan()
    h.execute()
    first, second = h.results
    assert h.core.complete(second, 0.0) == []
    assert h.core.in_flight == 2
    assert [type(event) for event in h.core.complete(first, 0.0)] == [FirstToken]
    assert h.core.in_flight == 0
    assert h.core.complete(first, 0.0) == []
    with pytest.raises(WorkerMismatch, match="result of step 9"):
        h.core.complete(StepDone(9, [], [], [], 0.0), 0.0)


def test_a_refused_step_is_an_error() -> None:
    """The state of the worker is then unknown."""
    h = harness()
    h.submit(make_request("a", [1] * 8, 10))
    h.plan()
    with pytest.raises(StepRefused, match="out of memory"):
        h.core.complete(StepDone(1, [], [], [], 0.0, "out of memory"), 0.0)


@pytest.mark.parametrize(("slots", "tokens"), [([], []), ([5], [1]), ([0], [])])
def test_a_result_that_cannot_be_is_an_error(slots: list[int], tokens: list[int]) -> None:
    """A missing output of a live row, or one of a slot that did not run, means that the two sides disagree."""
    h = harness()
    h.submit(make_request("a", [1] * 8, 10))
    h.plan()
    with pytest.raises(WorkerMismatch):
        h.core.complete(StepDone(1, slots, tokens, [0] * len(slots), 0.1), 0.0)


# Prefix cache


def test_a_shared_prefix_is_computed_once() -> None:
    """The second request starts behind the resident blocks; its last token is computed in any case."""
    h = harness()
    prompt = list(range(48))
    h.submit(make_request("a", prompt, 2))
    h.run()
    h.submit(make_request("b", prompt, 2))
    step = turn(h)
    assert (step.new[0].computed, step.counts) == (32, [16])
    h.run()
    h.check_end()


def test_groups_share_nothing() -> None:
    """Another salt finds nothing."""
    h = harness()
    h.submit(make_request("a", list(range(48)), 2, salt=b"one"))
    h.run()
    h.submit(make_request("b", list(range(48)), 2, salt=b"other"))
    assert turn(h).new[0].computed == 0


def test_outputs_are_shared_too() -> None:
    """A second turn of a conversation hits the blocks of the first one's answer."""
    h = harness()
    h.submit(make_request("a", list(range(1, 20)), 40))
    h.run()
    h.submit(make_request("b", [*range(1, 20), *h.seen("a"), 5, 5, 5], 2))
    assert turn(h).new[0].computed == 48


def test_nothing_is_shared_before_it_is_acknowledged() -> None:
    """KV that a step in flight is still to write is not in the index: that step may never be done."""
    h = harness(SchedulerConfig(single_flight_tokens=4096))
    h.submit(make_request("a", list(range(48)), 2))
    h.plan()
    h.submit(make_request("b", list(range(48)), 2))
    step = h.plan()
    assert step is not None
    assert step.new[0].computed == 0


def test_of_a_prompt_in_chunks_only_the_acknowledged_are_shared() -> None:
    """The chunk that is still in flight is not in the index when the one before it comes back."""
    h = harness(SchedulerConfig(single_flight_tokens=4096))
    h.submit(make_request("a", list(range(140)), 2))
    h.plan()
    h.plan()
    h.execute()
    h.complete()
    h.submit(make_request("b", list(range(140)), 2))
    step = h.plan()
    assert step is not None
    assert [(new.request, new.computed) for new in step.new] == [("b", 64)]


def test_of_equal_prefixes_one_is_computed_and_the_others_wait_for_it() -> None:
    """Single flight: the others start once the blocks are resident, and compute only their own tails."""
    h = harness(SchedulerConfig(single_flight_tokens=32), tokens_per_step=256)
    prefix = list(range(64))
    for i in range(4):
        h.submit(make_request(f"r{i}", [*prefix, 100 + i], 3))
    h.submit(make_request("other", [7] * 10, 3))
    first = turn(h)
    assert [new.request for new in first.new] == ["r0", "other"]
    second = turn(h)
    assert [(new.request, new.computed) for new in second.new] == [("r1", 64), ("r2", 64), ("r3", 64)]
    h.run()
    h.check_end()


def test_nobody_waits_for_a_prefix_of_a_lower_class() -> None:
    """That would make a priority request as slow as flex."""
    h = harness(SchedulerConfig(single_flight_tokens=32), tokens_per_step=64)
    h.submit(make_request("flex", [3] * 200, 3, tier=2))
    h.plan()
    h.submit(make_request("priority", [3] * 64, 3, tier=0))
    step = h.plan()
    assert step is not None
    assert [new.request for new in step.new] == ["priority"]


# Memory and preemption


def pressed(preemption: Literal["hybrid", "swap", "recompute"], *, host_blocks: int = 40) -> Harness:
    """Two rows that outgrow the pool together."""
    config = SchedulerConfig(preemption=preemption, watermark=0.0)
    h = harness(config, blocks=10, host_blocks=host_blocks)
    h.submit(make_request("old", [1] * 33, 70))
    h.submit(make_request("new", [2] * 33, 70))
    return h


def test_growth_evicts_the_last_in_standing_and_swap_keeps_its_work() -> None:
    """The later arrival is copied out and comes back with its KV, in full, after the first has room."""
    h = pressed("swap")
    h.run()
    h.check_end()
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert (preempted.request, preempted.kind, preempted.lost_tokens) == ("new", "swap", 0)


def test_a_row_comes_back_from_the_host_with_all_it_had() -> None:
    """Swapped in by the step that starts it, `computed` says so, and only the next token is computed."""
    h = pressed("swap")
    out = back = None
    while back is None:
        step = turn(h)
        if step.swap_out:
            out = step
        if step.swap_in:
            back = step
    assert out is not None
    (new,) = back.new
    assert new.request == "new"
    assert len(unpack_tokens(new.tokens)) == new.computed + 1
    assert back.counts[back.slots.index(new.slot)] == 1
    # What the index still has is shared, the rest is copied.
    assert 0 < len(back.swap_in) <= len(out.swap_out) == -(-new.computed // 16)


def test_recompute_gives_the_same_outputs() -> None:
    """Without host memory the KV is computed again, less what the prefix cache kept."""
    h = pressed("recompute", host_blocks=0)
    h.run()
    h.check_end()
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert preempted.kind == "recompute"
    assert preempted.lost_tokens > 33


def test_a_freed_but_fenced_block_is_progress() -> None:
    """While the victim's blocks are fenced behind a step in flight, nobody else is evicted for the same need."""
    config = SchedulerConfig(preemption="recompute", watermark=0.0, steps_in_flight=3)
    h = harness(config, blocks=14)
    for name, length in (("first", 33), ("second", 36), ("third", 40)):
        h.submit(make_request(name, [length] * length, 40))
    while h.plan() is not None and not events_of(h, Preempted):
        h.execute()
        if h.core.in_flight == 3:
            h.complete()
    assert [e.request for e in h.events if isinstance(e, Preempted)] == ["third"]
    h.execute()
    h.complete()  # not yet the step that the victim's blocks are fenced behind
    step = h.plan()
    assert step is not None
    assert not step.grown
    assert len(events_of(h, Preempted)) == 1
    h.run()
    h.check_end()


def test_the_last_in_standing_stalls_rather_than_evict_itself() -> None:
    """A row that nobody stands behind keeps its work, and goes on when another ends."""
    h = harness(SchedulerConfig(watermark=0.0), blocks=9)
    h.submit(make_request("a", [1] * 33, 40))
    h.submit(make_request("b", [2] * 33, 40))
    h.run()
    h.check_end()
    assert not events_of(h, Preempted)


def test_an_immune_row_is_not_evicted_and_takes_what_it_was_promised() -> None:
    """After its last preemption a row runs to its end, and those without that right give way to it."""
    config = SchedulerConfig(max_preemptions=1, min_run_steps=0, watermark=0.0, preemption="recompute")
    h = harness(config, slots=2, blocks=12)
    h.submit(make_request("old", [1] * 33, 150))
    h.submit(make_request("new", [2] * 33, 90, tier=2))
    for _ in range(3):
        turn(h)
    h.submit(make_request("p", [3] * 5, 3, tier=0))
    h.run()
    h.check_end()
    assert [e.request for e in h.events if isinstance(e, Preempted)] == ["new", "old"]


def test_nothing_is_preempted_where_the_worst_case_is_reserved() -> None:
    """With no preemptions allowed, requests start only if they can end."""
    h = harness(SchedulerConfig(max_preemptions=0), blocks=10)
    for i in range(5):
        h.submit(make_request(f"r{i}", [i] * 33, 70))
    h.run()
    h.check_end()
    assert not events_of(h, Preempted)


def test_a_request_as_large_as_the_pool_is_served() -> None:
    """The reserve for growth does not lock out what needs every block."""
    h = harness(blocks=8)
    h.submit(make_request("small", [1] * 20, 5))
    h.submit(make_request("large", [2] * 120, 9))
    h.run()
    h.check_end()


# Classes


def occupied(config: SchedulerConfig, *, ran: int) -> Harness:
    """Both slots taken by flex rows, for so many steps."""
    h = harness(config, slots=2, blocks=20)
    for name in ("f1", "f2"):
        h.submit(make_request(name, [ord(name[1])] * 20, 100, tier=2))
    for _ in range(ran):
        turn(h)
    return h


def test_a_higher_class_takes_the_slot_of_a_lower_one() -> None:
    """The later flex row gives way, and the step that evicts it starts nobody; the next one starts the newcomer."""
    h = occupied(SchedulerConfig(min_run_steps=4), ran=8)
    h.submit(make_request("p", [9] * 20, 5, tier=0))
    step = turn(h)
    assert len(step.drop) == 1
    assert not step.new
    assert [e.request for e in h.events if isinstance(e, Preempted)] == ["f2"]
    assert [new.request for new in turn(h).new] == ["p"]
    h.run()
    h.check_end()


def test_a_row_runs_its_quantum_before_it_gives_way() -> None:
    """A flex row that has just started is left alone until it has run for some steps."""
    h = occupied(SchedulerConfig(min_run_steps=10), ran=3)
    h.submit(make_request("p", [9] * 20, 5, tier=0))
    for _ in range(6):
        turn(h)
        assert not events_of(h, Preempted)
    for _ in range(3):
        turn(h)
    assert events_of(h, Preempted)


def test_nobody_is_evicted_in_vain() -> None:
    """If all flex rows together would not free enough, none gives way."""
    h = harness(SchedulerConfig(min_run_steps=0), blocks=20)
    h.submit(make_request("keeps", [1] * 150, 100, tier=0))
    h.submit(make_request("flex", [2] * 16, 100, tier=2))
    for _ in range(4):
        turn(h)
    h.submit(make_request("large", [3] * 200, 5, tier=0))
    for _ in range(5):
        turn(h)
    assert not events_of(h, Preempted)


def test_equals_do_not_evict_each_other() -> None:
    """A waiting row of the same class waits."""
    h = occupied(SchedulerConfig(min_run_steps=0), ran=3)
    h.submit(make_request("f3", [9] * 20, 5, tier=2, ttft_s=0.01))
    for _ in range(5):
        turn(h)
    assert not events_of(h, Preempted)


def test_a_flood_of_a_higher_class_starves_nobody() -> None:
    """While more priority requests come than can be served, a flex one as large as most of the pool still ends."""
    config = SchedulerConfig(patience_s=0.5, patience_share=4, min_run_steps=4)
    h = harness(config, slots=2, blocks=16)
    h.submit(make_request("flex", [1] * 150, 20, tier=2))
    for i in range(400):
        h.now += 0.01
        h.submit(make_request(f"p{i}", [2, i], 4, tier=0, ttft_s=0.1))
        turn(h)
        if ("flex", 1) in h.finished:
            break
    assert h.finished["flex", 1].finish is Finish.length
    assert len(h.core.requests()) > 20, "the flood was no flood"
    h.run()
    h.check_end()


# Ends


def test_a_cancelled_row_frees_its_blocks_at_once_and_is_reported_when_exact() -> None:
    """Its blocks count as free right away; `Finished` waits for the steps in flight, whose outputs are counted."""
    h = harness()
    h.submit(make_request("a", [1] * 40, 50))
    turn(h)
    h.plan()
    h.plan()
    h.execute()
    h.cancel("a")
    h.cancel("a")
    assert h.core.load(0.0, "w").free_blocks == h.spec.blocks
    assert h.core.requests() == []
    assert not events_of(h, Finished)
    h.complete()
    assert not events_of(h, Finished)
    h.complete()
    (end,) = events_of(h, Finished)
    assert isinstance(end, Finished)
    assert (end.finish, end.generated, len(h.seen("a"))) == (Finish.cancelled, 3, 3)
    h.check_end()


def test_a_row_that_waits_is_cancelled_at_once() -> None:
    """Nothing is in flight, so the event is there without any result; unknown requests are ignored."""
    h = harness()
    h.submit(make_request("a", [1] * 40, 50))
    h.cancel("a")
    h.core.cancel("nobody", 0.0)
    (end,) = events_of(h, Finished)
    assert isinstance(end, Finished)
    assert (end.generated, end.first_scheduled_at) == (0, None)
    assert h.plan() is None
    h.check_end()


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (make_request("r", [], 5), "the prompt is empty"),
        (make_request("r", [1], 0), "max_tokens is 0"),
        (make_request("r", [1] * 500, 13), r"500 prompt tokens \+ max_tokens 13 exceed the context of 512"),
        (make_request("r", [1] * 300, 22), "needs 21 KV blocks at its longest, the worker has 20"),
        (msgspec.structs.replace(make_request("r", [1], 2), generated=pack_tokens([1, 2])), "but 2 outputs are given"),
    ],
)
def test_what_could_never_be_served_is_refused(request_: object, why: str) -> None:
    """The message says what was wrong, and what the bound is."""
    h = harness(blocks=20)
    with pytest.raises(Unservable, match=why):
        h.core.submit(request_, 0.0)  # type: ignore[arg-type]
    assert h.core.requests() == []


def test_the_largest_request_that_fits_is_taken() -> None:
    """The last output is never computed, so it needs no room."""
    h = harness(blocks=20)
    h.submit(make_request("r", [1] * 300, 21))
    h.run()
    h.check_end()


# Attempts


def test_a_later_attempt_takes_the_place_of_an_earlier_one() -> None:
    """It goes on from what the client has seen; the same attempt again changes nothing."""
    h = harness()
    h.submit(make_request("a", [1] * 20, 30))
    for _ in range(5):
        turn(h)
    h.resume("a")
    h.submit(h.requests["a"])
    h.run()
    h.check_end()
    ends = {(e.attempt, e.finish, e.generated) for e in h.events if isinstance(e, Finished)}
    assert ends == {(1, Finish.cancelled, 5), (2, Finish.length, 30)}
    firsts = [e for e in h.events if isinstance(e, FirstToken)]
    assert [(e.attempt, e.late_s) for e in firsts] == [(1, None), (2, None)]


def test_after_a_loss_everything_is_handed_back_with_what_is_known() -> None:
    """Dropping all returns the live requests in order of arrival, and leaves a scheduler as new."""
    h = harness(slots=1)
    h.submit(make_request("a", [1] * 20, 30))
    h.submit(make_request("b", [2] * 20, 30))
    for _ in range(3):
        turn(h)
    h.plan()
    live = h.core.drop_all()
    assert [(one.request.id, one.attempt, one.gateway) for one in live] == [("a", 1, "gateway"), ("b", 1, "gateway")]
    assert [unpack_tokens(one.generated) for one in live] == [h.seen("a")[:3], []]
    h._start_worker()
    assert h.core.plan(0.0) is None
    assert h.core.load(0.0, "w").free_blocks == h.spec.blocks
    h.resume("a")
    h.resume("b")
    h.run()
    h.check_end()


# What it tells


def test_events_carry_the_times_of_a_request() -> None:
    """Queued, scheduled, first token and end, on the caller's clock, once each."""
    h = harness(tokens_per_step=32)
    h.submit(make_request("a", [1] * 64, 2, ttft_s=0.5))
    for _ in range(3):
        h.now += 1.0
        turn(h)
    scheduled, first, end = h.events
    assert isinstance(scheduled, Scheduled)
    assert isinstance(first, FirstToken)
    assert isinstance(end, Finished)
    assert (scheduled.queued_at, scheduled.at, scheduled.step) == (0.0, 1.0, 1)
    assert (first.at, first.first_scheduled_at, first.late_s) == (2.0, 1.0, 1.5)
    assert (end.queued_at, end.first_scheduled_at, end.first_token_at, end.at) == (0.0, 1.0, 2.0, 3.0)
    assert (end.prompt_tokens, end.generated, end.cached_tokens, end.finish) == (64, 2, 0, Finish.length)


def test_the_load_says_what_is_left_of_everything() -> None:
    """Blocks, slots, and for every live request its progress, deadline and lead."""
    h = harness(slots=4, blocks=64, tokens_per_step=32)
    h.submit(make_request("decodes", [1] * 20, 10, tpot_s=0.1))
    turn(h)
    turn(h)
    h.submit(make_request("waits", [2] * 40, 10, tier=2, ttft_s=2.0))
    h.now = 0.05
    load = h.core.load(h.now, "w")
    assert (load.worker, load.blocks, load.free_blocks, load.slots, load.free_slots) == ("w", 64, 62, 4, 3)
    decodes, waits = load.requests
    assert (decodes.prefill_left, decodes.context, decodes.generated, decodes.outputs_left) == (1, 21, 2, 8)
    assert decodes.first_token_in_s is None
    assert decodes.lead_s == pytest.approx(aimed_s(0.1) - 0.05), "one output after the first, one pace aimed at"
    assert (waits.prefill_left, waits.context, waits.outputs_left, waits.tier) == (40, 0, 10, 2)
    assert waits.first_token_in_s == pytest.approx(1.95)
    assert (load.ratio_p50, load.ratio_p90, load.ratio_p95) == (1.0, 1.1, 1.2)


def test_the_step_time_model_learns_what_a_step_did() -> None:
    """Every acknowledged step is observed with its tokens, attended pairs, decode context and rows."""
    seen: list[tuple[object, float]] = []

    class Learner(FixedStepTime):
        def observe(self, features: object, actual_s: float) -> None:
            seen.append((features, actual_s))

    h = Harness(worker_spec(tokens_per_step=32), vocabulary=NO_EOS, step_time=Learner())
    h.submit(make_request("a", [1] * 20, 10))
    turn(h)
    h.submit(make_request("b", [2] * 31, 10))
    turn(h)
    assert seen == [((20, 200.0, 0, 1), 0.01), ((32, 480.5, 20, 2), 0.02)]
