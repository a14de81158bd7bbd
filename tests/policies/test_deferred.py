"""The queue of deferred requests is bounded, ordered, and no tenant's alone."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.deferred import Deferred, DeferredQueue


def entry(name: str, tenant: str = "t", tier: int = 1, deadline: float = 10.0, until: float = 0.0) -> Deferred[str]:
    return Deferred(name, tenant, tier, deadline, until, name)


def order(queue: DeferredQueue[str], now: float = 0.0) -> list[str]:
    return [item.id for item in queue.due(now).order]


def test_order_is_tier_then_deadline_then_arrival() -> None:
    """A higher tier goes first, inside it the earlier deadline, and equals keep the order of arrival."""
    queue = DeferredQueue[str](8, share=1.0)
    for item in (
        entry("flex", tier=2, deadline=1),
        entry("late", deadline=9),
        entry("b", deadline=5),
        entry("c", deadline=5),
        entry("gold", tier=0, deadline=99),
    ):
        assert queue.add(item) is None
    assert order(queue) == ["gold", "b", "c", "late", "flex"]


def test_what_is_past_its_deadline_leaves() -> None:
    """Expired requests are handed out once, and the rest stays."""
    queue = DeferredQueue[str](8)
    queue.add(entry("a", deadline=1.0))
    queue.add(entry("b", deadline=2.0))
    due = queue.due(1.5)
    assert [item.id for item in due.expired] == ["a"]
    assert [item.id for item in due.order] == ["b"]
    assert queue.due(1.5).expired == []
    assert "a" not in queue


def test_one_tenant_cannot_occupy_the_whole_queue() -> None:
    """Beyond its share a tenant's newcomer is turned away while places are still free for others."""
    queue = DeferredQueue[str](8, share=0.5)
    for i in range(4):
        assert queue.add(entry(f"f{i}", "flood")) is None
    newcomer = entry("f4", "flood")
    assert queue.add(newcomer) is newcomer
    assert queue.add(entry("other", "calm")) is None


def test_a_tenant_at_its_share_may_put_something_better_in_place_of_its_worst() -> None:
    """Inside its share a tenant's own more urgent request replaces its least urgent one."""
    queue = DeferredQueue[str](4, share=0.5)
    queue.add(entry("a", deadline=5))
    queue.add(entry("b", deadline=9))
    out = queue.add(entry("gold", tier=0, deadline=1))
    assert out is not None
    assert out.id == "b"
    assert order(queue) == ["gold", "a"]


def test_when_full_the_tenant_above_its_fair_line_gives_way() -> None:
    """A full queue makes room for a tenant with fewer places by the last of the one with the most."""
    queue = DeferredQueue[str](4, share=0.75)
    for i in range(3):
        queue.add(entry(f"f{i}", "flood", deadline=5 + i))
    queue.add(entry("a", "a"))
    out = queue.add(entry("b", "b"))
    assert out is not None
    assert out.id == "f2"
    assert queue.held("flood") == 2
    newcomer = entry("c", "b")
    assert queue.add(newcomer) is newcomer  # b would then have as many as flood


def test_a_lower_tier_gives_way_to_a_higher_one() -> None:
    """A full queue of flex makes room for a contract, and never the other way round."""
    queue = DeferredQueue[str](2, share=1.0)
    queue.add(entry("f0", "flood", tier=2))
    queue.add(entry("f1", "flood", tier=2))
    out = queue.add(entry("gold", "gold", tier=0))
    assert out is not None
    assert out.tier == 2
    queue.add(entry("gold2", "gold", tier=0))
    newcomer = entry("f2", "poor", tier=2)
    assert queue.add(newcomer) is newcomer


def test_adding_an_id_again_keeps_its_place_among_equals() -> None:
    """A request that is deferred again stays before those that came after it."""
    queue = DeferredQueue[str](4, share=1.0)
    queue.add(entry("a"))
    queue.add(entry("b"))
    assert queue.add(entry("a", until=3.0)) is None
    assert order(queue) == ["a", "b"]
    assert len(queue) == 2


def test_the_queue_wakes_for_the_next_start_or_deadline() -> None:
    """wake_at is the earliest instant at which anything changes by itself."""
    queue = DeferredQueue[str](4, share=1.0)
    assert queue.wake_at() == inf
    queue.add(entry("a", deadline=9.0, until=4.0))
    queue.add(entry("b", deadline=3.0, until=3.5))
    assert queue.wake_at() == 3.0
    queue.remove("b")
    assert queue.wake_at() == 4.0


def test_a_queue_without_places_is_refused() -> None:
    """Sizes and shares that make no sense are errors at once."""
    with pytest.raises(ValueError, match="size must be"):
        DeferredQueue[str](0)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 20)),
        max_size=80,
    )
)
def test_nobody_is_lost_or_counted_twice(operations: list[tuple[bool, int, str, int, int]]) -> None:
    """Bounded, each id at most once, every turned-away request told, and places add up."""
    queue = DeferredQueue[str](6, share=0.5)
    present: dict[str, str] = {}
    for adds, number, tenant, tier, deadline in operations:
        name = f"{tenant}{number}"
        if adds:
            out = queue.add(entry(name, tenant, tier, deadline))
            present[name] = tenant
            if out is not None:
                del present[out.id]
        else:
            removed = queue.remove(name)
            assert (removed is not None) == (present.pop(name, None) is not None)
        assert len(queue) == len(present) <= 6
        assert sorted(order(queue, -1.0)) == sorted(present)
        keys = [(item.tier, item.deadline_s) for item in queue.due(-1.0).order]
        assert keys == sorted(keys)
        for tenant_name in "abc":
            assert queue.held(tenant_name) == sum(t == tenant_name for t in present.values()) <= 3
