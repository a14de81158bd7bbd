"""What admission remembers of what it let in."""

from __future__ import annotations

from actors.messages import Live
from actors.reservations import Reservations


def test_a_report_that_an_end_overtook_brings_nothing_back() -> None:
    """A gateway told of a request before it ended, and admission heard the end first: it stays over."""
    reservations = Reservations()
    live = Live(gateway="g", requests=["a", "b"], tenants=["t", "t"], tokens=[5, 7])
    reservations.end("a")
    assert reservations.live(live, 1.0) == [("b", "t", 7)]
    assert reservations.live(live, 2.0) == []
    assert reservations.abandoned(8.0) == [("b", "t")]
    assert reservations.live(live, 9.0) == [("b", "t", 7)], "what was only silent for a while is counted again"
