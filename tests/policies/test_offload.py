"""Copies ahead of need, and the rules by which rows that wait keep their blocks."""

from __future__ import annotations

import msgspec
import pytest
from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import Preemption, SchedulerConfig
from policies.events import Event, Preempted, Reclaimed
from policies.vocabulary import BLOCK_SIZE, Step, StepTimeCoefficients


def harness(config: SchedulerConfig, *, blocks: int = 10, host_blocks: int = 40, **spec: int) -> Harness:
    return Harness(worker_spec(blocks=blocks, host_blocks=host_blocks, **spec), config)


def pressed(preemption: Preemption, *, offload_share: float = 0.0, host_blocks: int = 40) -> Harness:
    """Two rows that outgrow the pool together."""
    config = SchedulerConfig(preemption=preemption, watermark=0.0, offload_share=offload_share)
    h = harness(config, host_blocks=host_blocks)
    h.submit(make_request("old", [1] * 33, 70))
    h.submit(make_request("new", [2] * 33, 70))
    return h


def steps_of(h: Harness) -> list[Step]:
    """All steps until everything is over."""
    steps = []
    while h.core.requests():
        h.now += 0.01
        while (step := h.plan()) is not None:
            steps.append(step)
        h.execute()
        h.complete()
    h.check_end()
    return steps


def events_of(h: Harness, kind: type[Event]) -> list[Event]:
    return [event for event in h.events if isinstance(event, kind)]


def test_none_reserves_the_worst_case() -> None:
    """Nobody is ever preempted: who might not fit at his longest waits."""
    h = pressed("none")
    first = h.plan()
    assert first is not None
    assert [new.request for new in first.new] == ["old"]
    h.execute()
    h.complete()
    h.run()
    h.check_end()
    assert not events_of(h, Preempted)


def test_without_a_prefix_cache_everybody_computes_his_own() -> None:
    """With `prefix_cache` off, equal prompts share nothing, neither wait for each other."""
    for cached, expected in ((True, 96), (False, 0)):
        h = harness(SchedulerConfig(prefix_cache=cached, single_flight_tokens=16), blocks=40)
        h.submit(make_request("first", [1] * 100, 5))
        h.run()
        for name in ("second", "third"):
            h.submit(make_request(name, [1] * 100, 5))
        h.run()
        h.check_end()
        assert [end.cached_tokens for end in h.finished.values()] == [0, expected, expected]


def test_a_tail_is_all_that_is_lost() -> None:
    """The victim gives up a block at a time, keeps its head while it waits, and computes only the tail again."""
    h = pressed("tail")
    steps = steps_of(h)
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert (preempted.request, preempted.kind, preempted.blocks) == ("new", "tail", 1)
    assert preempted.kept_blocks == 4
    reclaimed = events_of(h, Reclaimed)
    assert {event.request for event in reclaimed if isinstance(event, Reclaimed)} == {"new"}
    back = [new for step in steps for new in step.new][-1]
    lost = preempted.lost_tokens + sum(event.lost_tokens for event in reclaimed if isinstance(event, Reclaimed))
    assert back.request == "new"
    assert 0 < lost <= 2 * BLOCK_SIZE + 8
    assert back.computed >= (preempted.kept_blocks - len(reclaimed)) * BLOCK_SIZE > 0
    assert not any(step.swap_out for step in steps)


def test_who_waits_with_blocks_never_blocks_the_head_of_the_queue() -> None:
    """Where nobody runs, whatever others keep is there for the head, although it would have been of use to them."""
    config = SchedulerConfig(preemption="tail", watermark=0.0, min_run_steps=0)
    h = harness(config, blocks=10, slots=2)
    h.submit(make_request("low", [1] * 100, 20, tier=2))
    h.plan()
    h.execute()
    h.complete()
    h.submit(make_request("high", [2] * 140, 20, tier=0))
    h.run()
    h.check_end()
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert preempted.request == "low"


def test_a_slot_alone_costs_a_tail_victim_nothing() -> None:
    """Where only its slot is needed, it keeps all of its blocks."""
    config = SchedulerConfig(preemption="tail", min_run_steps=0)
    h = harness(config, blocks=40, slots=1)
    h.submit(make_request("low", [1] * 50, 20, tier=2))
    h.plan()
    h.execute()
    h.complete()
    h.submit(make_request("high", [2] * 20, 5, tier=0))
    h.run()
    h.check_end()
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert (preempted.kind, preempted.lost_tokens, preempted.blocks) == ("tail", 0, 0)


@pytest.mark.parametrize("preemption", ["swap", "tail", "hybrid", "recompute"])
def test_what_is_copied_ahead_is_not_copied_again(preemption: Preemption) -> None:
    """Blocks of a row that runs are copied once they are scarce, and its preemption copies only the rest."""
    h = pressed(preemption, offload_share=0.5)
    steps = steps_of(h)
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    before = [step for step in steps if step.swap_out and not step.drop]
    assert before, "nothing was copied ahead"
    copied = [block for step in before for block, _ in step.swap_out]
    assert len(copied) == len(set(copied))
    assert preempted.swapped_blocks <= 2  # the last block, which was not full, and perhaps one that just became so
    assert preempted.lost_tokens < 2 * BLOCK_SIZE


def test_copies_ahead_take_no_more_than_their_share_of_the_link() -> None:
    """In any stretch of steps, copied bytes stay under the share of what the link moves in their predicted time."""
    share = 0.25
    h = pressed("hybrid", offload_share=share)  # a block takes 1 ms, a step 10 ms: 2.5 blocks a step
    counts = []
    while h.core.requests() and not events_of(h, Preempted):
        h.now += 0.01
        while (step := h.plan()) is not None:
            if not events_of(h, Preempted):
                counts.append(len(step.swap_out))
        h.execute()
        h.complete()
    h.run()
    assert sum(counts) >= 4
    for begin in range(len(counts)):
        for end in range(begin + 1, len(counts) + 1):
            assert sum(counts[begin:end]) <= share * 10 * (end - begin) + 1


def test_nothing_is_copied_ahead_while_blocks_are_plenty() -> None:
    """Copies begin when fewer than a fifth of the blocks are free."""
    config = SchedulerConfig(offload_share=1.0)
    h = harness(config, blocks=100)
    h.submit(make_request("r", [1] * 100, 50))
    assert not any(step.swap_out for step in steps_of(h))


def test_a_real_swap_takes_the_room_of_copies_ahead() -> None:
    """Copies of rows that run are forgotten when the host must take a row that gives way."""
    h = harness(SchedulerConfig(preemption="swap", watermark=0.0, offload_share=1.0), host_blocks=5)
    for name, token in (("old", 1), ("new", 2)):
        h.submit(make_request(name, [token] * 33, 70))
    steps_of(h)
    (preempted,) = events_of(h, Preempted)
    assert isinstance(preempted, Preempted)
    assert preempted.kind == "swap"


def gives_way(expected: int, *, tpot_s: float | None = None) -> bool:
    """Whether a row in need of a block takes it from a later one, which is foretold to end after `expected` outputs.

    The first needs its fifth block after 20 outputs; the other has room for 28 by then.
    """
    spec = msgspec.structs.replace(worker_spec(blocks=8, host_blocks=0), swap_bytes_per_s=0.0)
    slow = FixedStepTime(StepTimeCoefficients(0.01, 0.008, 0.005))
    h = Harness(spec, SchedulerConfig(preemption="hybrid", watermark=0.0, steps_in_flight=1), step_time=slow)
    h.submit(make_request("growing", [2] * 44, 30, tpot_s=tpot_s))
    h.submit(msgspec.structs.replace(make_request("ending", [1] * 36, 60), expected_outputs=expected))
    for _ in range(23):
        h.now += 0.01
        h.plan()
        h.execute()
        h.complete()
    given = bool(events_of(h, Preempted))
    h.run()
    h.check_end()
    return given


def test_a_short_wait_is_cheaper_than_a_preemption() -> None:
    """A row in need stalls while another is about to end within the blocks that it has; else somebody gives way."""
    assert not gives_way(26)
    assert gives_way(60)
    assert gives_way(0)


def test_nobody_misses_its_pace_by_waiting() -> None:
    """Who would break its promise if it waited takes the block at once."""
    assert gives_way(26, tpot_s=0.0141)
    assert not gives_way(26, tpot_s=0.05)
