"""Heartbeats have an age: a process that fell silent is seen as that for a while, and is no process meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actors.runtime import Alive
from gateway.stack_view import StackView


def test_a_silent_process_is_remembered_for_half_a_minute() -> None:
    """Among the processes for as long as heartbeats may be missed, then as silent, then not at all."""
    now = [100.0]
    view = StackView({}, lambda: now[0])
    ctx: Any = SimpleNamespace(sender="worker.w0")
    view.heard_alive(Alive("w0", 7, {"state": "ready", "model": "m", "pid": 5}), ctx)
    now[0] += 0.5
    assert view.processes() == [{"role": "worker", "instance": "w0", "pid": 5, "epoch": 7, "state": "ready"}]
    (beat,) = view.heartbeats()
    assert (beat.role, beat.instance, beat.epoch, beat.age_s, beat.state, beat.model) == (
        "worker",
        "w0",
        7,
        0.5,
        "ready",
        "m",
    )
    now[0] += 1.0
    assert view.processes() == []
    assert view.heartbeats()[0].state == "silent"
    now[0] += 30.0
    assert view.heartbeats() == []
