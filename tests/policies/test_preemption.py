"""Preemption: who gives way, and by which means."""

from __future__ import annotations

import msgspec
import pytest
from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.giving import Costs, Link, to_come
from policies.kv import KvMemory
from policies.preemption import choose_set, standing
from policies.rows import Row
from policies.running import Running
from policies.vocabulary import StepTimeCoefficients, WorkerSpec


def running_row(sequence: int, *, tier: int = 1, tpot_s: float | None = None, preemptions: int = 0) -> Row:
    row = Row(make_request(f"r{sequence}", [1], 10, tier=tier, tpot_s=tpot_s), sequence=sequence, now=0.0)
    row.preemptions = preemptions
    return row


def test_standing_is_class_then_promise_then_arrival() -> None:
    """The lowest class gives way first, in it those without a promised pace, of those the latest arrival."""
    rows = [
        running_row(1, tier=0),
        running_row(5, tier=1, tpot_s=0.1),
        running_row(2, tier=1),
        running_row(4, tier=1),
        running_row(3, tier=2, tpot_s=0.1),
    ]
    assert [row.sequence for row in sorted(rows, key=standing)] == [1, 5, 2, 4, 3]


def test_who_was_preempted_often_enough_is_immune() -> None:
    """Who gave way K times is passed over, whatever the class of who asks."""
    rows = [running_row(1, tier=2), running_row(2, tier=2, preemptions=2)]
    freed = dict.fromkeys(rows, 4)
    assert choose_set(rows, tier=0, slots=1, blocks=1, freed_by=freed, max_preemptions=2) == [rows[0]]
    assert choose_set(rows, tier=0, slots=1, blocks=1, freed_by=freed, max_preemptions=0) == []


def test_a_higher_class_gets_all_it_needs_or_nothing() -> None:
    """A set that frees too little is not preempted at all."""
    rows = [running_row(i, tier=2) for i in range(3)]
    freed = dict.fromkeys(rows, 4)
    assert len(choose_set(rows, tier=0, slots=1, blocks=8, freed_by=freed, max_preemptions=2)) == 2
    assert choose_set(rows, tier=0, slots=1, blocks=13, freed_by=freed, max_preemptions=2) == []


def test_equals_and_betters_never_give_way_to_a_waiting_row() -> None:
    """Only a strictly lower class is looked at."""
    rows = [running_row(1, tier=0), running_row(2, tier=1)]
    freed = dict.fromkeys(rows, 9)
    assert choose_set(rows, tier=1, slots=1, blocks=1, freed_by=freed, max_preemptions=2) == []


def test_who_is_not_needed_is_spared() -> None:
    """If a later choice frees enough alone, earlier ones run on."""
    rows = [running_row(1, tier=2), running_row(2, tier=2)]
    chosen = choose_set(rows, tier=0, slots=1, blocks=8, freed_by={rows[0]: 9, rows[1]: 1}, max_preemptions=2)
    assert chosen == [rows[0]]


#: An 8 B model of 128 KiB a token on 50 GB/s: a copy is an order of magnitude cheaper than 30,000 tokens/s of prefill.
LARGE = (16 * 131_072, 50e9, StepTimeCoefficients(0.005, 0.005, 1 / 30_000))
#: A 0.6 B model of 112 KiB a token on a slow link: computing again is cheaper.
SMALL = (16 * 114_688, 5e9, StepTimeCoefficients(0.005, 0.005, 1 / 400_000))
#: Its steps stay at the floor, whatever they compute.
FLOOR = (16 * 131_072, 50e9, StepTimeCoefficients(0.02, 0.001, 1e-6))


class Bench:
    """Rows that decode at 4,096 tokens, and the prices of their blocks."""

    def __init__(self, figures: tuple[int, float, StepTimeCoefficients] = LARGE, *, host: int = 10_000) -> None:
        block_bytes, bytes_per_s, coefficients = figures
        self.spec = WorkerSpec("m", "mock", 2000, host, block_bytes, 8, 8192, 8192, bytes_per_s, coefficients)
        self.kv = KvMemory(self.spec.blocks, host)
        self.running = Running(8, max_preemptions=2)
        self.link = Link(self.spec)
        self.costs = Costs(self.spec, FixedStepTime(coefficients), kv=self.kv, running=self.running, link=self.link)

    def row(self, name: str = "r", *, outputs: int = 100, expected: int = 0, tpot_s: float | None = None) -> Row:
        request = make_request(name, [len(self.running)] * 4096, outputs, tpot_s=tpot_s)
        row = Row(msgspec.structs.replace(request, expected_outputs=expected), sequence=len(self.running), now=0.0)
        self.kv.start(row, self.kv.look(row), 1)
        self.running.enter(row)
        row.computed, row.left, row.first_token_at = 4096, row.left - 1, 0.0
        row.tokens.append(7)
        self.running.prefilled(row)
        self.kv.register(row)
        return row


@pytest.mark.parametrize(("figures", "copies"), [(LARGE, True), (SMALL, False), (FLOOR, False)])
def test_the_cheaper_way_is_taken(figures: tuple[int, float, StepTimeCoefficients], copies: bool) -> None:
    """A large model on a fast link copies; a small one on a slow link does not, nor one with compute to spare."""
    bench = Bench(figures)
    offer = bench.costs.offer(bench.row(), 256, now=0.0)
    assert (offer.copy, offer.keep, offer.freed) == (copies, 0, 256)


def test_a_full_host_leaves_no_choice() -> None:
    """Without room on the host there is nowhere to copy to."""
    bench = Bench(host=255)
    assert not bench.costs.offer(bench.row(), 256, now=0.0).copy


def test_copies_of_rows_that_run_are_no_obstacle() -> None:
    """What was only copied ahead of need counts as room, but for the victim's own copies, which it uses."""
    bench = Bench(host=256)
    first, second = bench.row(), bench.row()
    bench.kv.copy_out(first, list(range(200)), 1)
    assert bench.costs.offer(second, 256, now=0.0).copy
    assert bench.costs.offer(first, 256, now=0.0).copy
    assert bench.kv.make_host_room(56, but=first)
    assert len(first.host_blocks) == 200


def test_a_queue_on_the_link_makes_computing_again_cheaper() -> None:
    """Copies wait for those before them, and rows in need wait with them."""
    bench = Bench()
    row = bench.row()
    bench.link.carry(20_000, 0.0)
    assert not bench.costs.offer(row, 256, now=0.0).copy
    assert bench.costs.offer(row, 256, now=10.0).copy


def test_what_is_copied_already_costs_no_second_copy() -> None:
    """The way out of a block that the host has is free."""
    bench = Bench()
    row = bench.row()
    before = bench.costs.offer(row, 256, needers=1, now=0.0)
    bench.kv.copy_out(row, list(range(256)), 1)
    after = bench.costs.offer(row, 256, needers=1, now=0.0)
    assert before.copy
    assert after.cost_s < before.cost_s / 1.5


def test_no_more_than_the_tail_that_is_needed_is_given() -> None:
    """The head stays, and what others hold too, which would free nothing."""
    bench = Bench()
    row = bench.row()
    assert bench.kv.tail(row, 3) == (253, 3)
    for block in row.blocks[:100]:
        bench.kv.device.share(block)
    assert bench.kv.tail(row, 1000) == (100, 156)


def test_a_victim_that_keeps_its_promise_goes_before_one_that_would_not() -> None:
    """A row far ahead of its pace gives way rather than one that is about to miss it."""
    bench = Bench()
    late, ahead = bench.row("late", tpot_s=0.006, expected=40), bench.row("ahead", tpot_s=1.0, expected=40)
    bench.row("other", expected=60)
    bench.kv.device.take(bench.kv.device.free)
    costs, ends = bench.costs, bench.costs.ends()
    misses = [costs.badness(row, costs.offer(row, 10, now=0.0), ends=ends, now=0.0)[0] for row in (late, ahead)]
    assert misses == [True, False]


def test_a_victim_whose_promise_is_broken_already_has_none_to_lose() -> None:
    """Late with its first token, a row costs less than one that could rest for long and still keep its pace."""
    bench = Bench()
    broken, ahead = bench.row("broken", tpot_s=0.02), bench.row("ahead", tpot_s=0.5)
    bench.kv.device.take(bench.kv.device.free)
    broken.deadline = -1.0
    costs, ends = bench.costs, bench.costs.ends()
    bad = [costs.badness(row, costs.offer(row, 10, now=0.0), ends=ends, now=0.0) for row in (broken, ahead)]
    assert [misses for misses, _ in bad] == [False, False]
    assert bad[0][1] < bad[1][1]


def test_a_victim_is_away_until_others_have_given_what_it_takes_to_return() -> None:
    """The first end that makes room for all it has counts; for its worst case, if it returns immune."""
    bench = Bench()
    soon, late = bench.row("soon", expected=21), bench.row("late", expected=51)
    victim = bench.row("victim", outputs=1600, expected=1000)
    bench.kv.device.take(bench.kv.device.free)
    ends, step_s = bench.costs.ends(), bench.costs.step_s()
    assert ends.at_s == pytest.approx([20 * step_s, 50 * step_s, 999 * step_s])
    assert bench.costs.away_s(victim, ends) == pytest.approx(50 * step_s)  # one of 256 blocks is not quite enough
    bench.kv.device.release(range(1500, 1510), fence=0)
    assert bench.costs.away_s(victim, ends) == pytest.approx(20 * step_s)
    victim.preemptions = 1  # and 356 at its longest
    assert bench.costs.away_s(victim, ends) == pytest.approx(50 * step_s)
    assert soon.blocks
    assert late.blocks


def test_nobody_foretold_a_length_so_a_row_goes_on_for_as_long_as_it_has() -> None:
    """An expectation counts until it is outlived; what is allowed bounds both."""
    bench = Bench()
    row = bench.row(outputs=200, expected=50)
    assert to_come(row) == 49
    row.tokens.extend([7] * 59)
    row.left -= 59
    assert to_come(row) == 60
    row.tokens.extend([7] * 80)
    row.left -= 80
    assert to_come(row) == row.left == 60
    assert to_come(bench.row(outputs=200)) == 16


def test_who_ends_soon_is_told_by_what_was_foretold_else_by_the_bound() -> None:
    """A release is in sight only where a row ends within the blocks that it has."""
    bench = Bench()
    bench.row(outputs=100)
    assert bench.costs.release_s(1) == float("inf")
    row = bench.row(outputs=100, expected=5)
    assert bench.costs.release_s(1) == float("inf")
    bench.kv.grow(row)
    assert bench.costs.release_s(1) == pytest.approx(4 * bench.costs.step_s())
    assert bench.costs.release_s(1, but=[row]) == float("inf")


def test_blocks_that_two_waiting_rows_share_are_taken_from_both() -> None:
    """The first keeps what the second shares, and gives it up too once the second did: else the head of the queue would
    wait for a block that nobody computes with, on an idle worker."""
    h = Harness(worker_spec(blocks=8), SchedulerConfig(preemption="tail", watermark=0.0))
    h.submit(make_request("a", [3] * 16 + [4] * 24, 10))
    h.plan()
    h.execute()
    h.complete()
    h.submit(make_request("b", [3] * 16 + [5] * 24, 10))
    h.plan()
    h.execute()
    h.complete()
    a, b = h.core._rows["a"], h.core._rows["b"]
    assert a.blocks[0] == b.blocks[0]
    for row, keeps in ((a, 1), (b, 2)):
        h.core._planner._pressure.preempt(Draft(3, 64), row, len(row.blocks) - keeps, h.now)
        assert len(row.blocks) == keeps
    h.submit(make_request("whole", [6] * 118, 10, tier=0))
    step = h.plan()
    assert step is not None
    assert [new.request for new in step.new] == ["whole"]
    h.run()
    h.check_end()


def test_a_request_on_the_host_is_reported_as_one_that_is_to_come_with_all_it_has() -> None:
    """It holds no device memory, but will: reported as computed, it would make those who run seem to hold less."""
    spec = msgspec.structs.replace(worker_spec(blocks=8), host_blocks=8, swap_bytes_per_s=1e12, block_bytes=1)
    h = Harness(spec, SchedulerConfig(preemption="swap", watermark=0.0))
    h.submit(make_request("a", [3] * 40, 10))
    h.plan()
    h.execute()
    h.complete()
    row = h.core._rows["a"]
    assert (row.computed, row.position, len(row.blocks)) == (40, 40, 3)
    h.core._planner._pressure.preempt(Draft(3, 64), row, 3, h.now)
    assert (row.saved, row.blocks) == (40, [])
    load = h.core.load(h.now, "w").requests[0]
    assert (load.prefill_left, load.context) == (41, 0)
    assert load.prefill_left + load.context == len(row.tokens)
