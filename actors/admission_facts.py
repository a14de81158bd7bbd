"""What admission notes of its decisions and of what became of the admitted, and tells while somebody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from actors.decision_journal import DecisionJournal
from actors.messages import AdmissionFacts, Decision, Settle, TenantFacts, WaitingFacts
from actors.tenant_journal import TenantJournal
from policies.admission import Defer
from policies.vocabulary import Request

__all__ = ["AdmissionReporter"]

#: Tenants told of at most: of more, the busiest.
_MOST_TENANTS = 256
#: Tenants summed up at a time, before others have their turn: some 20 µs each.
_AT_ONCE = 16


class AdmissionReporter:
    """Numbers what it tells: each report has the decisions since the one before. `clock` gives monotonic seconds,
    `unix` the time of day."""

    def __init__(self, clock: Callable[[], float], *, unix: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._unix = unix
        self._decisions = DecisionJournal()
        self._tenants = TenantJournal()
        self._told = 0

    def deferred(self, request: Request, verdict: Defer) -> None:
        """It is kept waiting."""
        self._decisions.deferred(request, verdict, self._unix())
        self._tenants.decided(request.tenant, "deferred", verdict.reason.value, self._clock())

    def decided(self, request: Request, decision: Decision) -> None:
        """It is admitted or refused."""
        self._decisions.decided(request, decision, self._unix())
        self._tenants.decided(request.tenant, decision.outcome, decision.reason, self._clock())

    def settled(self, settle: Settle) -> None:
        """It is over."""
        self._tenants.settled(
            settle.tenant,
            self._clock(),
            ttft_s=settle.ttft_s,
            tpot_s=settle.tpot_s,
            ttft_kept=settle.ttft_kept,
            tpot_kept=settle.tpot_kept,
        )

    def waiting(self) -> list[WaitingFacts]:
        """Those that are deferred now."""
        return self._decisions.waiting(self._clock())

    async def report(self, *, whole: bool) -> AdmissionFacts:
        """`whole`: with all decisions that are kept. Lets others have their turn meanwhile."""
        names = self._tenants.tenants(self._clock(), _MOST_TENANTS)
        tenants: list[TenantFacts] = []
        for at in range(0, len(names), _AT_ONCE):
            if at:
                await asyncio.sleep(0)
            tenants += self._tenants.facts(names[at : at + _AT_ONCE], self._clock())
        first, decisions = self._decisions.since(0 if whole else self._told)
        self._told = self._decisions.noted
        waiting = self._decisions.waiting(self._clock())
        return AdmissionFacts(first=first, decisions=decisions, tenants=tenants, waiting=waiting, whole=whole)
