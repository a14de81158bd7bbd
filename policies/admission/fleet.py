"""The workers of a model, and which few of them a decision looks at.

A forecast costs tens of microseconds, so with many workers only a shortlist is forecast. Every worker has two cheap
estimates of how long a newcomer would wait there, one for newcomers under contract, which requests without one do not
delay, and one for the rest. They are computed once a report and moved with every reservation, and workers are kept in
their order, so that a decision costs O(log workers) beside its forecasts. The list is

- half: the emptiest, where a newcomer is in time if anywhere;
- half: the fullest of those whose estimate is within half of the time that it has, where best fit wants to put it;
- instead of the last of these, the worker that holds the longest prefix of its prompt.

The estimate decides only who is looked at, never who is admitted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from math import inf

from policies.admission.worker_state import Reservation
from policies.overload import demand, strain
from policies.vocabulary import BLOCK_SIZE, Tier, WorkerLoad

__all__ = ["Fleet"]

_BINDING, _ANY = 0, 1


class _Queued:
    """What waits on a worker for one class of newcomers."""

    __slots__ = ("tokens", "waiting")

    def __init__(self) -> None:
        self.tokens = 0  # of prompts, to compute
        self.waiting = 0  # requests without a slot


class _Worker:
    """A report, summed up, and the reservations since. `waits`: seconds by class of newcomer."""

    __slots__ = (
        "_held",
        "_pending",
        "_queued",
        "_used",
        "demand",
        "load",
        "prompt_token_s",
        "step_s",
        "turnover_s",
        "waits",
    )

    def __init__(self, load: WorkerLoad) -> None:
        self.load = load
        self.demand = demand(load)
        self._queued = (_Queued(), _Queued())
        self._pending = (_Queued(), _Queued())
        self._held = [0, load.slots - load.free_slots]  # slots
        self._used = [0, load.blocks - load.free_blocks]
        rows = context = outputs = bound_context = 0
        binding, everybody = self._queued
        for r in load.requests:
            binds = r.tier < Tier.flex
            if r.prefill_left > 1:
                everybody.tokens += r.prefill_left
                everybody.waiting += not r.context
                if binds:
                    binding.tokens += r.prefill_left
                    binding.waiting += not r.context
            else:
                rows += 1
                context += r.context
                outputs += r.outputs_left
            if binds and r.context:
                self._held[_BINDING] += 1
                bound_context += r.context
        self._used[_BINDING] = min(self._used[_ANY], bound_context // BLOCK_SIZE)
        c, upper = load.step_time, max(load.ratio_p50, load.ratio_run_p90 or load.ratio_p90)
        reading = c.per_context_s * context + c.per_row_s * rows
        room = max(1, load.tokens_per_step - rows)
        full = max(c.floor_s, c.base_s + c.per_token_s * load.tokens_per_step) + reading
        self.step_s = (max(c.floor_s, c.base_s + c.per_token_s * max(1, rows)) + reading) * upper
        self.prompt_token_s = full * upper / room
        self.turnover_s = outputs / rows * self.step_s if rows else 0.0  # until a row of today has ended
        self.waits = [self._wait(_BINDING), self._wait(_ANY)]

    def pend(self, reservation: Reservation, sign: int) -> None:
        """A reservation came (1), or is over or reported (-1)."""
        for kind in (_BINDING, _ANY) if reservation.tier < Tier.flex else (_ANY,):
            self._pending[kind].tokens += sign * reservation.prompt_tokens
            self._pending[kind].waiting += sign

    def repend(self, reservations: list[Reservation]) -> None:
        """These are all the reservations that the report does not show."""
        self._pending = (_Queued(), _Queued())
        for reservation in reservations:
            self.pend(reservation, 1)

    def rated(self) -> tuple[float, float]:
        """The estimates of now, for both classes."""
        return self._wait(_BINDING), self._wait(_ANY)

    def _wait(self, kind: int) -> float:
        load, queued, pending = self.load, self._queued[kind], self._pending[kind]
        tokens, waiting = queued.tokens + pending.tokens, queued.waiting + pending.waiting
        wait = tokens * self.prompt_token_s
        lacking = (waiting + 1 + self._held[kind] - load.slots) / load.slots if load.slots else inf
        short = (tokens / BLOCK_SIZE + self._used[kind] - load.blocks) / load.blocks if load.blocks else inf
        # One turnover frees everything, so a share that is lacking takes that share of it, and at least one end.
        scarce = max(lacking, short)
        if scarce > 0:
            wait += self.turnover_s * max(scarce, 1 / max(1, load.slots))
        # Beside equal queues, the batch with the faster steps.
        return wait + self.step_s


class Fleet:
    """The workers of one model, by their last reports."""

    def __init__(self) -> None:
        self.heard_at = -inf
        self._workers: dict[str, _Worker] = {}
        self._orders: tuple[list[tuple[float, str]], list[tuple[float, str]]] = ([], [])

    def __len__(self) -> int:
        return len(self._workers)

    def pressure(self, tightest_ttft_s: float | None) -> float:
        """As `policies.overload.pressure` of all reports. O(workers)."""
        return min((strain(*worker.demand, tightest_ttft_s) for worker in self._workers.values()), default=0.0)

    def any_load(self) -> WorkerLoad:
        """The report of one of them: to weigh requests against each other."""
        return next(iter(self._workers.values())).load

    def update(self, load: WorkerLoad, pending: list[Reservation]) -> None:
        """A report; `pending` are the reservations that it does not show."""
        self.remove(load.worker)
        worker = _Worker(load)
        worker.repend(pending)
        self._workers[load.worker] = worker
        self._place(load.worker, worker)

    def remove(self, name: str) -> None:
        """That worker is gone."""
        worker = self._workers.pop(name, None)
        if worker is not None:
            self._take(name, worker)

    def keep(self, names: set[str]) -> None:
        """No other worker is there any more."""
        for name in [name for name in self._workers if name not in names]:
            self.remove(name)

    def pend(self, reservation: Reservation) -> None:
        """One more was let in on its worker."""
        worker = self._workers.get(reservation.worker)
        if worker is not None:
            self._take(reservation.worker, worker)
            worker.pend(reservation, 1)
            self._place(reservation.worker, worker)

    def repend(self, name: str, pending: list[Reservation]) -> None:
        """These are all that its report does not show."""
        worker = self._workers.get(name)
        if worker is not None:
            self._take(name, worker)
            worker.repend(pending)
            self._place(name, worker)

    def estimate(self, name: str, *, binding: bool) -> tuple[float, float]:
        """What a newcomer would wait on that worker, and the time of its steps without prompts; seconds."""
        worker = self._workers[name]
        return worker.waits[_BINDING if binding else _ANY], worker.step_s

    def shortlist(
        self, size: int, *, binding: bool, time_s: float = inf, cached: Mapping[str, int] = {}
    ) -> list[WorkerLoad]:
        """At most `size` reports, the emptiest first (see the module); `time_s` is what the newcomer has."""
        order = self._orders[_BINDING if binding else _ANY]
        if len(order) <= size:
            return [self._workers[name].load for _, name in order]
        emptiest = max(1, size // 2)
        fullest = bisect_left(order, (time_s / 2, ""))
        names = [name for _, name in order[:emptiest]]
        names += [name for _, name in order[max(emptiest, fullest - (size - emptiest)) : fullest]]
        if len(names) < size:  # few are half empty: then the next emptiest
            names += [name for _, name in order[max(emptiest, fullest) : max(emptiest, fullest) + size - len(names)]]
        warm = max((name for name in cached if name in self._workers), key=lambda name: cached[name], default=None)
        if warm is not None and warm not in names:
            names[-1] = warm
        return [self._workers[name].load for name in names]

    def _take(self, name: str, worker: _Worker) -> None:
        for order, wait in zip(self._orders, worker.waits, strict=True):
            del order[bisect_left(order, (wait, name))]

    def _place(self, name: str, worker: _Worker) -> None:
        worker.waits[:] = worker.rated()
        for order, wait in zip(self._orders, worker.waits, strict=True):
            insort(order, (wait, name))
