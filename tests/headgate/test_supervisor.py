"""The process supervisor: what dies comes back alone, and everything ends in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headgate.supervisor import STATE_FILE, Child, Supervisor

#: Says that it runs, and on SIGTERM that it ends.
PROGRAM = """
import pathlib, signal, sys, time
log = open(sys.argv[1], "a", buffering=1)
def end(*_):
    log.write("end\\n"); sys.exit(0)
signal.signal(signal.SIGTERM, end)
log.write("run\\n")
while True:
    time.sleep(60)
"""


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path / STATE_FILE, info={"model": "m"})
    yield supervisor
    await supervisor.stop()


def child(tmp_path: Path, instance: str) -> Child:
    told = tmp_path / instance
    return Child("worker", instance, [sys.executable, "-c", PROGRAM, str(told)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def test_a_killed_child_comes_back_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    """kill -9 of one process starts that one again, with another pid, and leaves its neighbour alone."""
    one, two = child(tmp_path, "w0"), child(tmp_path, "w1")
    supervisor.add(one)
    supervisor.add(two)
    await until(lambda: lines(tmp_path / "w0") == ["run"] and lines(tmp_path / "w1") == ["run"])
    pids = one.pid, two.pid
    os.kill(one.pid, signal.SIGKILL)
    await until(lambda: lines(tmp_path / "w0") == ["run", "run"])
    assert one.pid != pids[0]
    assert two.pid == pids[1]
    assert one.restarts == 1


async def test_stop_ends_children_gently(supervisor: Supervisor, tmp_path: Path) -> None:
    """SIGTERM reaches every child, and the state file goes with them."""
    supervisor.add(child(tmp_path, "w0"))
    await until(lambda: lines(tmp_path / "w0") == ["run"])
    await supervisor.stop()
    assert lines(tmp_path / "w0") == ["run", "end"]
    assert not (tmp_path / STATE_FILE).exists()


async def test_the_state_file_says_what_heartbeats_said(supervisor: Supervisor, tmp_path: Path) -> None:
    """`headgate ps` reads role, instance, pid, epoch and state of each process, those kept by others included."""
    one = child(tmp_path, "w0")
    supervisor.add(one)
    await until(lambda: one.pid != 0)
    supervisor.note("nats", "n0", pid=7, state="ready")
    supervisor.heard("worker", "w0", pid=one.pid, epoch=5, state="ready")
    state = json.loads((tmp_path / STATE_FILE).read_text())
    seen = [(p["role"], p["instance"], p["pid"], p["epoch"], p["state"]) for p in state["processes"]]
    assert seen == [("worker", "w0", one.pid, 5, "ready"), ("nats", "n0", 7, 0, "ready")]


async def test_a_heartbeat_of_a_predecessor_changes_nothing(supervisor: Supervisor, tmp_path: Path) -> None:
    """What a process said before it died does not make its successor ready."""
    one = child(tmp_path, "w0")
    supervisor.add(one)
    await until(lambda: one.pid != 0)
    supervisor.heard("worker", "w0", pid=one.pid + 1, epoch=9, state="ready")
    assert (one.epoch, one.state) == (0, "starting")
