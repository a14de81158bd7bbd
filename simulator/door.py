"""Admission in a simulation: the real one, told of workers as the running stack tells it, but only when it looks.

A live scheduler reports 10 ms after a change, and every 100 ms. A report costs more than a step, and says nothing that
a worker does not know a moment later: so here a report that would have come is made when a request arrives, or while
somebody is deferred, when it is due; and in a fleet that is larger than a shortlist, a worker to which nothing came and
where nothing ended reports when a decision is about to look at it. Under the kind "none" nobody looks and nothing is
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Literal, Protocol

from policies.admission import (
    Admission,
    Admit,
    Decided,
    HistoryLengths,
    MaxTokens,
    Oracle,
    OutputLengths,
    Refuse,
    Verdict,
)
from policies.catalog import PolicySet
from policies.overload import Level
from policies.vocabulary import Contract, Request, WorkerLoad
from simulator.limits import SimulatedLimits
from simulator.records import Outcome, Workload
from simulator.requests import MODEL
from simulator.worker import SimulatedWorker

__all__ = ["AnyDoor", "Door", "DoorMaker", "Knowledge"]

#: Of output lengths: all of them ("clairvoyant": and how long every kind of step really takes), what tenants' past ones
#: tell, or `max_tokens` alone.
Knowledge = Literal["oracle", "history", "max_tokens", "clairvoyant"]

REPORT_AFTER_S = 0.01  # a change
REPORT_EVERY_S = 0.1


class AnyDoor(Protocol):
    """Where requests come in."""

    @property
    def shared(self) -> tuple[object, ...]:
        """What never changes, and need not be copied for a fork."""
        ...

    @property
    def next_s(self) -> float:
        """When `due` is to be called; inf: nobody waits."""
        ...

    @property
    def deferred(self) -> int:
        """Requests that wait here."""
        ...

    def arrive(self, request: Request, now: float) -> Verdict:
        """Decide on a newcomer. A deferred one is decided by a later `due`."""
        ...

    def due(self, now: float) -> list[Decided]:
        """What is decided now of those that were deferred."""
        ...

    def changed(self, number: int, now: float) -> None:
        """Somebody came to worker `number`, or ended there."""
        ...

    def level_at(self, now: float) -> Level:
        """How far up the overload ladder it is now."""
        ...

    def settled(self, outcome: Outcome, now: float) -> None:
        """An admitted request is over."""
        ...


class DoorMaker(Protocol):
    """Makes the door of a simulation, as `Door` is made."""

    def __call__(
        self,
        policies: PolicySet,
        workload: Workload,
        workers: Sequence[SimulatedWorker],
        *,
        knowledge: Knowledge,
        length_noise: float,
        seed: int,
    ) -> AnyDoor: ...


class Door:
    """The real one. `knowledge` and `length_noise` as for `Simulation`."""

    def __init__(
        self,
        policies: PolicySet,
        workload: Workload,
        workers: Sequence[SimulatedWorker],
        *,
        knowledge: Knowledge,
        length_noise: float,
        seed: int,
    ) -> None:
        self._workers = workers
        self._tenants = workload.tenants
        self._true_outputs: dict[str, int] = {}
        self._admission: Admission | None = None
        self._limits = SimulatedLimits(workload.tenants, best_effort=policies.admission.above_rate)
        self._next_s = inf
        self._last_s = 0.0  # `due` was called
        self._report_s = [-inf] * len(workers)  # when the next report of each worker would come
        self._numbers = {worker.name: number for number, worker in enumerate(workers)}
        #: Of a large fleet: the same, where something changed; a heap, in which what was reported since is dead.
        self._changes: list[tuple[float, int]] = [(-inf, number) for number in range(len(workers))]
        self._is_large = len(workers) > policies.admission.shortlist
        self.lengths: OutputLengths = HistoryLengths() if knowledge == "history" else MaxTokens()
        if policies.admission.kind == "none":
            return
        if knowledge in ("oracle", "clairvoyant"):
            self._true_outputs = {a.id: min(a.output_tokens, a.max_tokens) for a in workload.arrivals}
            sigma = length_noise if knowledge == "oracle" else 0.0
            self.lengths = Oracle(self._true_outputs, sigma=sigma, seed=seed)
        paces = [tenant.contract.tpot_ms for tenant in workload.tenants.values() if tenant.contract.tier != "flex"]
        self._tightest_s = min((pace / 1000 for pace in paces if pace is not None), default=None)
        self._admission = Admission(
            policies.admission,
            seed=seed,
            lengths=self.lengths,
            contract_of=self._contract,
            tightest_tpot_s=self._tightest,
            freshen=self._fresh if self._is_large else None,
        )

    def _contract(self, tenant: str) -> Contract | None:
        known = self._tenants.get(tenant)
        return None if known is None else known.contract

    def _tightest(self) -> float | None:
        return self._tightest_s

    @property
    def shared(self) -> tuple[object, ...]:
        """See `AnyDoor`."""
        return (self._true_outputs,)

    @property
    def next_s(self) -> float:
        """See `AnyDoor`."""
        return self._next_s

    def level_at(self, now: float) -> Level:
        """How far up the overload ladder it is now."""
        return Level.calm if self._admission is None else self._admission.level(MODEL)

    @property
    def deferred(self) -> int:
        """Requests that wait here."""
        return 0 if self._admission is None else len(self._admission)

    def arrive(self, request: Request, now: float) -> Verdict:
        """Decide on a newcomer, first by its tenant's limits. A deferred one is decided by a later `due`."""
        committed = self._limits.reserve(request, now)
        if isinstance(committed, Refuse):
            return committed
        admission = self._admission
        if admission is None:
            return Admit(
                worker="",
                tier=request.tier,
                ttft_s=request.ttft_s,
                tpot_s=request.tpot_s,
                predicted_ttft_s=0.0,
                predicted_tpot_s=0.0,
                headroom_s=inf,
            )
        self._report(admission, now)
        verdict = admission.arrive(request, now, committed=committed)
        self._look_ahead(admission)
        if isinstance(verdict, Refuse):
            self._limits.cancel(request.id, request.tenant, now)
        return verdict

    def changed(self, number: int, now: float) -> None:
        """Somebody came to worker `number`, or ended there."""
        if self._admission is not None and now + REPORT_AFTER_S < self._report_s[number]:
            self._report_s[number] = now + REPORT_AFTER_S
            if self._is_large:
                heappush(self._changes, (now + REPORT_AFTER_S, number))
            if len(self._admission) and now + REPORT_AFTER_S < self._next_s:
                self._next_s = now + REPORT_AFTER_S

    def due(self, now: float) -> list[Decided]:
        """What is decided now of those that were deferred."""
        admission = self._admission
        if admission is None:
            return []
        self._last_s = now
        decided = admission.expire(now)
        if self._report(admission, now) or self._is_large:
            decided += admission.reexamine(MODEL, now)
        self._look_ahead(admission)
        for one in decided:
            if isinstance(one.verdict, Refuse):
                self._limits.cancel(one.request.id, one.request.tenant, now)
        return decided

    def settled(self, outcome: Outcome, now: float) -> None:
        """An admitted request is over."""
        self._limits.settle(outcome.id, outcome.tenant, outcome.prompt_tokens + outcome.generated, now)
        admission = self._admission
        if admission is None:
            return
        ttft_kept, tpot_kept = outcome.kept if outcome.admitted else (None, None)
        admission.settled(
            outcome.id,
            outcome.tenant,
            outputs=outcome.generated,
            is_whole=outcome.finished_s is not None,
            ttft_kept=ttft_kept,
            tpot_kept=tpot_kept,
            now=now,
        )

    def _report(self, admission: Admission, now: float) -> bool:
        """Make the reports that would have come by now; False if there are none."""
        due = self._due_of_many(now) if self._is_large else [n for n, at in enumerate(self._report_s) if at <= now]
        if due:
            admission.report(MODEL, self._loads(due, now), now, whole=len(due) == len(self._workers))
        return bool(due)

    def _due_of_many(self, now: float) -> list[int]:
        due = set()
        while self._changes and self._changes[0][0] <= now:
            at, number = heappop(self._changes)
            if self._report_s[number] == at:
                due.add(number)
        return sorted(due)

    def _fresh(self, workers: Sequence[str], now: float) -> list[WorkerLoad]:
        """The reports that would have come of these."""
        due = [number for worker in workers if self._report_s[number := self._numbers[worker]] <= now]
        return self._loads(due, now)

    def _loads(self, numbers: list[int], now: float) -> list[WorkerLoad]:
        for number in numbers:
            self._report_s[number] = now + REPORT_EVERY_S
        return [self._workers[number].load(now) for number in numbers]

    def _look_ahead(self, admission: Admission) -> None:
        if not len(admission):
            self._next_s = inf
        elif self._is_large:
            change_s = self._changes[0][0] if self._changes else inf
            self._next_s = min(admission.wake_at(), change_s, self._last_s + REPORT_EVERY_S)
        else:
            self._next_s = min(admission.wake_at(), min(self._report_s))
