"""The whole screen: which parts are on it, and how many lines each has, for terminals from 80x24 up."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.rule import Rule

from headgate.top import panels
from headgate.top.state import Known

__all__ = ["drawn", "printed"]

_TWO_COLUMNS = 160
#: Rows below which something is left out.
_TALL = 34


def drawn(known: Known, *, width: int, height: int) -> RenderableType:
    """Exactly `height` lines at most, of at most `width`."""
    root = Layout()
    root.split_column(Layout(panels.header(known, width=width), size=1, name="header"), Layout(name="body"))
    if width >= _TWO_COLUMNS:
        half = width // 2 - 1
        root["body"].split_row(Layout(name="left"), Layout(" ", size=2), Layout(name="right", size=half))
        _left(root["left"], known, width=width - half - 2, height=height - 1)
        _right(root["right"], known, width=half, height=height - 1)
    else:
        _single(root["body"], known, width=width, height=height - 1)
    return root


def printed(known: Known, *, width: int) -> RenderableType:
    """All of it one below the other, as long as it is."""
    frame = known.frame
    count = 0 if frame is None else max(len(frame.tenants), len(frame.workers), len(frame.running))
    return Group(
        panels.header(known, width=width),
        _rule("tenants"),
        panels.tenants(known, width=width, height=count + 1),
        _rule("decisions"),
        panels.decisions(known, width=width, height=20),
        _rule("steps"),
        panels.steps(known, width=width, height=8),
        _rule("queue"),
        panels.queue(known, width=width),
        _rule("workers"),
        panels.workers(known, width=width, height=count + 1),
        _rule("running"),
        panels.running(known, width=width, height=count + 1),
    )


def _rule(name: str) -> Rule:
    return Rule(name, align="left", style="dim", characters="─")


def _part(name: str, content: RenderableType, lines: int) -> Layout:
    return Layout(Group(_rule(name), content), size=lines + 1, name=name)


def _single(at: Layout, known: Known, *, width: int, height: int) -> None:
    frame = known.frame
    tenants = max(2, min(1 + (len(frame.tenants) if frame else 0), 1 + height // 4))
    workers = max(2, min(1 + (len(frame.workers) if frame else 0), 1 + height // 8))
    steps = 3 if height < _TALL else 7
    running = 0 if height < _TALL else min(1 + (len(frame.running) if frame else 0), height // 5)
    rest = height - (tenants + 1) - (workers + 1) - (steps + 1) - 2 - (running + 1 if running else 0) - 1
    parts = [
        _part("tenants", panels.tenants(known, width=width, height=tenants), tenants),
        _part("decisions", panels.decisions(known, width=width, height=rest), max(1, rest)),
        _part("steps", panels.steps(known, width=width, height=steps), steps),
        _part("queue", panels.queue(known, width=width), 1),
        _part("workers", panels.workers(known, width=width, height=workers), workers),
    ]
    if running:
        parts.append(_part("running", panels.running(known, width=width, height=running), running))
    at.split_column(*parts)


def _left(at: Layout, known: Known, *, width: int, height: int) -> None:
    tenants = max(2, min(1 + (len(known.frame.tenants) if known.frame else 0), height // 2))
    rest = height - tenants - 2
    at.split_column(
        _part("tenants", panels.tenants(known, width=width, height=tenants), tenants),
        _part("decisions", panels.decisions(known, width=width, height=rest), rest),
    )


def _right(at: Layout, known: Known, *, width: int, height: int) -> None:
    workers = max(2, min(1 + (len(known.frame.workers) if known.frame else 0), height // 5))
    steps = 3 + max(0, min(8, height // 5))
    running = height - (workers + 1) - (steps + 1) - 2 - 1
    at.split_column(
        _part("steps", panels.steps(known, width=width, height=steps), steps),
        _part("queue", panels.queue(known, width=width), 1),
        _part("workers", panels.workers(known, width=width, height=workers), workers),
        _part("running", panels.running(known, width=width, height=running), max(1, running)),
    )
