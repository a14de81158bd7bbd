"""Whether a process does its work, in words: what its ops port answers, and an orchestrator decides by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

__all__ = ["STANDBY_ROLES", "Readiness", "Report"]

#: Roles of which one process works and another may wait to take its place. Who waits is as it should be.
STANDBY_ROLES = ("scheduler", "admission")


class Report(msgspec.Struct, frozen=True):
    """`state`: starting, standby, ready, not ready or draining."""

    role: str
    instance: str
    state: str
    reasons: list[str]

    @property
    def is_ready(self) -> bool:
        """Whether it does what it is there for; to wait for a lease is what a standby is there for."""
        return self.state in ("ready", "standby")


class Readiness:
    """Collects what keeps one process from working. Starts as `starting`; nothing in it waits."""

    def __init__(self, role: str, instance: str) -> None:
        self._role = role
        self._instance = instance
        self._checks: list[Callable[[], Iterable[str]]] = []
        self._doing = "connecting to NATS"
        self._is_connected: Callable[[], bool] = lambda: False
        self._is_waiting = False
        self._is_serving = False
        self._is_draining = False

    def check(self, reasons: Callable[[], Iterable[str]]) -> None:
        """Ask `reasons` at every report why the process cannot work now; empty when it can."""
        self._checks.append(reasons)

    def starts(self, doing: str) -> None:
        """It is not there yet, because it still does this."""
        self._doing = doing

    def waits(self) -> None:
        """Its actor is on its way up: what may keep it now is a lease that another one holds."""
        self._is_waiting = True
        self._doing = "waiting for its lease"

    def serves(self) -> None:
        """Its actor receives messages."""
        self._is_serving = True

    def drains(self) -> None:
        """It was told to end."""
        self._is_draining = True

    def report(self) -> Report:
        """As of now."""
        reasons = [reason for check in self._checks for reason in check()] if self._is_serving else []
        if self._is_draining:
            return self._as("draining", ["draining: it finishes what it has, and takes nothing new"])
        if self._is_serving:
            return self._as("not ready" if reasons else "ready", reasons)
        if self._is_waiting and self._role in STANDBY_ROLES:
            lost = self._connection()
            return self._as("not ready" if lost else "standby", lost)
        return self._as("starting", [self._doing])

    def connected_by(self, is_connected: Callable[[], bool]) -> None:
        """How to see whether there is a connection to NATS; without one nothing works."""
        self._is_connected = is_connected
        self.check(self._connection)

    def _connection(self) -> list[str]:
        return [] if self._is_connected() else ["not connected to NATS"]

    def _as(self, state: str, reasons: list[str]) -> Report:
        return Report(self._role, self._instance, state, list(dict.fromkeys(reasons)))
