"""Who is turned away first while capacity is short: the tenant that asks for more than its share."""

from __future__ import annotations

import pytest
from door import Door, poisson
from hypothesis import given
from hypothesis import strategies as st

from policies.admission import Admission, Policy
from policies.admission.fairness import FairLine

CAPACITY = 15.0


def used(line: FairLine, now: float, **shares: tuple[float, float]) -> None:
    for tenant, (asked, got) in shares.items():
        line.asked(tenant, asked, 1.0, now)
        line.got(tenant, got, now)


def test_while_nobody_is_turned_away_nobody_is_above_the_line() -> None:
    """However unequal: what nobody else asks for is free to take. A window after the last refusal it is so again."""
    line = FairLine(window_s=10.0)
    used(line, 0.0, big=(100.0, 100.0), small=(1.0, 1.0))
    assert not line.must_leave_room("big", 0.0)
    line.short(0.0)
    used(line, 0.0, big=(100.0, 50.0), small=(1.0, 1.0))
    assert line.must_leave_room("big", 1.0)
    assert not line.must_leave_room("small", 1.0)
    assert not line.must_leave_room("big", 11.0)


def test_what_was_used_while_there_was_enough_is_no_debt() -> None:
    """A tenant that was alone on the device is not held to it when another one floods."""
    line = FairLine(window_s=10.0)
    used(line, 0.0, first=(80.0, 80.0))
    line.short(1.0)
    used(line, 1.0, first=(1.0, 1.0), flood=(50.0, 5.0))
    assert line.must_leave_room("flood", 1.5)
    assert not line.must_leave_room("first", 1.5)


def test_shares_are_by_weight() -> None:
    """Of two that both want all, the one that has more than its weight gives."""
    line = FairLine(window_s=10.0)
    line.short(0.0)
    for tenant, weight, got in (("heavy", 3.0, 5.0), ("light", 1.0, 5.0)):
        line.asked(tenant, 50.0, weight, 0.0)
        line.got(tenant, got, 0.0)
    assert line.must_leave_room("light", 0.0)
    assert not line.must_leave_room("heavy", 0.0)


def test_where_all_are_above_nobody_leaves_room() -> None:
    """Equal floods share as they come: there is nobody to leave room for."""
    line = FairLine(window_s=10.0)
    line.short(0.0)
    used(line, 0.0, a=(50.0, 5.0), b=(50.0, 5.0))
    assert not line.must_leave_room("a", 0.0)
    assert not line.must_leave_room("b", 0.0)


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 1), st.floats(0.1, 4)), min_size=1, max_size=8))
def test_who_asks_for_less_than_an_equal_part_is_never_above(shares: list[tuple[float, float, float]]) -> None:
    """Whatever the others do: below the capacity divided by weight, a tenant leaves no room."""
    line = FairLine(window_s=10.0)
    line.short(0.0)
    for i, (asked, served, weight) in enumerate(shares):
        line.asked(str(i), asked, weight, 0.0)
        line.got(str(i), asked * served, 0.0)
    equal = sum(asked * served for asked, served, _ in shares) / sum(weight for _, _, weight in shares)
    for i, (asked, _, weight) in enumerate(shares):
        if asked < equal * weight * 0.999:
            assert not line.must_leave_room(str(i), 0.0)


@pytest.mark.parametrize("seed", [1, 3])
def test_a_flood_under_contract_hardly_moves_another_tenant(seed: int) -> None:
    """With ten times the capacity from one tenant, another at 0.3 of it keeps at least 95 % of what it has alone; the
    admitted are met, and the device stays in use."""
    warm, gold = poisson(9, 3.0, 5.0, "warm"), poisson(seed, 0.3 * CAPACITY, 25.0, "gold", start_s=5.0)
    flood = poisson(seed + 50, 10 * CAPACITY, 15.0, "flood", start_s=15.0)
    alone, shared, careless = (Door(Admission(Policy(fair_room=room))) for room in (0.2, 0.2, 0.0))
    alone.play(warm + gold)
    shared.play(warm + gold + flood)
    careless.play(warm + gold + flood)
    assert alone.share("gold") == 1.0
    assert shared.share("gold") >= 0.95
    assert careless.share("gold") < 0.8, "without a fair line it is crowded out"
    served = [job for name, job in shared.jobs.items() if name.startswith("flood/")]
    assert len(served) / 15.0 >= 0.6 * CAPACITY
    assert sum(job.met() for job in served) >= 0.99 * len(served)


def test_room_is_steered_by_who_is_refused_below_the_line() -> None:
    """It grows with refusals of those below, up to `most`, shrinks by a hundredth of that with the others, and does not
    move for those above, nor once nobody is short; without `most` it is fixed."""
    line, fixed = FairLine(window_s=10.0, least=0.2, most=0.5), FairLine(window_s=10.0, least=0.2)
    for each in (line, fixed):
        each.short(0.0)
        used(each, 0.0, flood=(90.0, 9.0), small=(1.0, 1.0))
        assert each.must_leave_room("flood", 0.0)
        each.decided("flood", refused=True, now=0.0)
        assert each.room == 0.2
        for _ in range(5):
            each.decided("small", refused=True, now=0.0)
    assert (line.room, line.steered, fixed.room, fixed.steered) == (0.5, True, 0.2, False)
    line.decided("small", refused=False, now=0.0)
    assert line.room == pytest.approx(0.5 - 0.2 * 0.01 / 0.99)
    line.decided("small", refused=True, now=11.0)
    assert line.room < 0.5
