"""The process supervisor of `headgate serve`: one child process per role instance, each restarted alone when it dies.

It is a tree of one level, one-for-one, with exponential backoff. State is written to `<data>/stack.json` at every
change, for `headgate ps` and for whoever needs the pid of a role.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

__all__ = ["STATE_FILE", "Child", "Supervisor"]

STATE_FILE = "stack.json"

#: A child that lived so long starts again with the shortest delay.
_STABLE_S = 20.0
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 5.0


@dataclass(slots=True)
class Child:
    """One role instance. `state`: starting, ready, draining, restarting, stopped."""

    role: str
    instance: str
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = Path(os.devnull)  # what it prints is appended
    drain_s: float = 12.0
    state: str = "stopped"
    pid: int = 0
    epoch: int = 0
    restarts: int = 0
    detail: str = ""
    process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return f"{self.role}.{self.instance}"


class Supervisor:
    """Starts children in order, keeps them alive, and stops them in the opposite order."""

    def __init__(self, state_file: Path, *, info: Mapping[str, object]) -> None:
        self._state_file = state_file
        self._info = dict(info)
        self.children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger()

    def add(self, child: Child) -> None:
        """Start a child and keep it alive. It is `starting` until `heard` says otherwise."""
        self.children[child.name] = child
        self._keepers[child.name] = asyncio.create_task(self._keep(child), name=f"keep-{child.name}")

    def note(self, role: str, instance: str, *, pid: int, state: str) -> None:
        """List a process that somebody else keeps alive (nats-server)."""
        child = self.children.setdefault(f"{role}.{instance}", Child(role, instance))
        child.restarts += child.pid not in (0, pid)
        child.pid, child.state = pid, state
        self._write()

    def heard(self, role: str, instance: str, *, pid: int, epoch: int, state: str, detail: str = "") -> None:
        """A heartbeat came."""
        child = self.children.get(f"{role}.{instance}")
        if child is None or child.pid != pid:
            return
        if (child.epoch, child.state, child.detail) != (epoch, state, detail):
            child.epoch, child.state, child.detail = epoch, state, detail
            self._write()

    async def _keep(self, child: Child) -> None:
        delay_s = _FIRST_DELAY_S
        while True:
            started = time.monotonic()
            with child.log.open("ab") as log:
                child.process = await asyncio.create_subprocess_exec(
                    *child.command,
                    env={**os.environ, **child.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us: we stop them in order
                )
            child.pid, child.state, child.epoch = child.process.pid, "starting", 0
            self._write()
            code = await child.process.wait()
            lived_s = time.monotonic() - started
            delay_s = _FIRST_DELAY_S if lived_s > _STABLE_S else min(_LONGEST_DELAY_S, 2 * delay_s)
            child.state, child.restarts = "restarting", child.restarts + 1
            self._log.warning("process ended", child=child.name, pid=child.pid, code=code, restart_in_s=delay_s)
            self._write()
            await asyncio.sleep(delay_s)

    async def stop(self) -> None:
        """SIGTERM each child in the opposite order of starting, wait for its drain, then SIGKILL. Idempotent."""
        for child in [*self.children.values()][::-1]:
            keeper = self._keepers.pop(child.name, None)
            if keeper is not None:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper
            await _end(child)
            child.state = "stopped"
        with contextlib.suppress(FileNotFoundError):
            self._state_file.unlink()

    def _write(self) -> None:
        """Replace the state file in one move, so that a reader never sees half of it."""
        processes = [
            {
                "role": child.role,
                "instance": child.instance,
                "pid": child.pid,
                "epoch": child.epoch,
                "state": child.state,
                "restarts": child.restarts,
                "detail": child.detail,
            }
            for child in self.children.values()
        ]
        state = {**self._info, "supervisor_pid": os.getpid(), "processes": processes}
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(self._state_file)


async def _end(child: Child) -> None:
    process = child.process
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(child.drain_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
