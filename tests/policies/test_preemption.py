"""Preemption: who gives way, and by which means."""

from __future__ import annotations

import pytest
from harness import FixedStepTime, make_request

from policies.preemption import choose_kind, choose_set, standing, worst
from policies.rows import Row
from policies.vocabulary import StepTimeCoefficients


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
    assert worst(rows, max_preemptions=2) is rows[-1]


def test_who_was_preempted_often_enough_is_immune() -> None:
    """The last in standing is passed over once it gave way K times; None if everyone did."""
    rows = [running_row(1), running_row(2, preemptions=2)]
    assert worst(rows, max_preemptions=2) is rows[0]
    assert worst(rows, max_preemptions=0) is None


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


#: An 8 B model of 128 KiB a token on 50 GB/s: swap is an order of magnitude cheaper than 30,000 tokens/s of prefill.
LARGE = {"block_bytes": 16 * 131_072, "swap_bytes_per_s": 50e9, "per_token_s": 1 / 30_000}
#: A 0.6 B model of 112 KiB a token on a slow link: computing again is cheaper.
SMALL = {"block_bytes": 16 * 114_688, "swap_bytes_per_s": 5e9, "per_token_s": 1 / 400_000}


def kind(
    figures: dict[str, float], *, mode: str = "hybrid", tokens: int = 4096, resident: int = 0, host_free: int = 10_000
) -> str:
    return choose_kind(
        mode=mode,
        tokens=tokens,
        resident=resident,
        blocks=-(-tokens // 16),
        host_free=host_free,
        block_bytes=int(figures["block_bytes"]),
        swap_bytes_per_s=figures["swap_bytes_per_s"],
        step_time=FixedStepTime(StepTimeCoefficients(0.005, 0.005, figures["per_token_s"])),
    )


def test_the_cheaper_way_is_taken() -> None:
    """A large model on a fast link swaps; a small one on a slow link recomputes."""
    assert kind(LARGE) == "swap"
    assert kind(SMALL) == "recompute"


def test_what_others_hold_need_not_be_computed_again() -> None:
    """A victim whose KV is nearly all shared recomputes, even where swap is cheap."""
    assert kind(LARGE, resident=4080) == "recompute"


@pytest.mark.parametrize("mode", ["hybrid", "swap"])
def test_a_full_host_leaves_no_choice(mode: str) -> None:
    """Without host blocks there is nowhere to swap to."""
    assert kind(LARGE, mode=mode, host_free=255) == "recompute"


def test_an_operator_may_force_either() -> None:
    """The mode overrides the cost rule."""
    assert kind(SMALL, mode="swap") == "swap"
    assert kind(LARGE, mode="recompute") == "recompute"
