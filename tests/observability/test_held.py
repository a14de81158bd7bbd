from __future__ import annotations

from observability.held import HeldSpans


def test_what_is_held_is_recorded_when_it_is_asked_for_and_once() -> None:
    """Also what one request held several times, in the order in which it came."""
    recorded: list[str] = []
    held = HeldSpans()
    held.hold("a", lambda: recorded.append("a1"))
    held.hold("b", lambda: recorded.append("b"))
    held.hold("a", lambda: recorded.append("a2"))
    assert recorded == []
    held.keep(["a", "unknown"])
    held.keep(["a"])
    assert recorded == ["a1", "a2"]
    assert len(held) == 1


def test_what_comes_after_it_was_asked_for_is_recorded_at_once() -> None:
    """A gateway sees the end before the scheduler does."""
    recorded: list[str] = []
    held = HeldSpans()
    held.keep(["a"])
    held.hold("a", lambda: recorded.append("a"))
    assert recorded == ["a"]
    assert len(held) == 0


def test_both_what_is_held_and_what_was_asked_for_are_bounded() -> None:
    """The oldest are forgotten first; to hold more of a request makes it young again."""
    recorded: list[str] = []
    held = HeldSpans(limit=2)
    held.hold("a", lambda: recorded.append("a"))
    held.hold("b", lambda: recorded.append("b"))
    held.hold("a", lambda: recorded.append("a"))
    held.hold("c", lambda: recorded.append("c"))
    assert len(held) == 2
    held.keep(["a", "b", "c"])
    assert recorded == ["a", "a", "c"]
    held.hold("a", lambda: recorded.append("forgotten"))  # three were asked for, two are remembered
    assert recorded == ["a", "a", "c"]
