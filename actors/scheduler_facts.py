"""What a scheduler tells of itself while somebody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from actors.messages import SchedulerFacts, WorkerFacts
from actors.step_journal import StepJournal
from actors.worker_link import WorkerLink
from policies.vocabulary import Request

__all__ = ["SchedulerReporter"]


class SchedulerReporter:
    """Numbers what it tells: each report has the steps since the one before. `unix` gives the time of day."""

    def __init__(self, model: str, journal: StepJournal, *, unix: Callable[[], float] = time.time) -> None:
        self._model = model
        self._journal = journal
        self._unix = unix
        self._told = 0

    def report(
        self, links: Iterable[WorkerLink], unplaced: Iterable[Request], now: float, *, whole: bool
    ) -> SchedulerFacts:
        """`whole`: with all steps that are kept. O(rows)."""
        first, steps = self._journal.since(0 if whole else self._told, unix_offset_s=self._unix() - now)
        self._told = self._journal.noted
        rates = self._journal.rates(now)
        return SchedulerFacts(
            model=self._model,
            first=first,
            steps=steps,
            workers=[_worker(link, rates.get(link.worker, 0.0), now) for link in links],
            served_tokens=self._journal.served(now),
            unplaced=[(request.tenant, request.tier) for request in unplaced],
            whole=whole,
        )


def _worker(link: WorkerLink, steps_per_s: float, now: float) -> WorkerFacts:
    core = link.core
    return WorkerFacts(
        link.worker,
        link.spec.device,
        link.epoch,
        link.spec.slots,
        link.spec.slots - core.census().running,
        steps_per_s,
        core.block_counts(),
        core.view(now),
    )
