"""A disaggregated fleet whose workers help the other side while its queue is long: Splitwise's mixed pool.

A worker that serves both sides keeps what it has prefilled, and decodes it itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.admission import Admit, Refuse
from policies.catalog import PolicySet
from policies.events import Event
from policies.mixed_pool import Duty, MixedPool, Side
from policies.placement import Ask
from policies.vocabulary import Request
from simulator.disaggregated import DisaggregatedSimulation
from simulator.records import Device, Workload

__all__ = ["PooledSimulation"]


class PooledSimulation(DisaggregatedSimulation):
    """As `DisaggregatedSimulation`.

    :param borrow_at: queued tokens (prefill) and requests (decode) for each worker of a side, above which it is helped;
        by default two full steps of prompts, and nine tenths of the slots.
    :param return_at: below which it is not helped any more; by default a quarter of that.
    :raises ValueError: as `policies.mixed_pool.MixedPool`.
    """

    def __init__(
        self,
        workload: Workload,
        device: Device,
        policies: PolicySet,
        *,
        workers: int = 2,
        borrow_at: Mapping[Side, float] | None = None,
        return_at: Mapping[Side, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(workload, device, policies, workers=workers, **options)
        borrow = borrow_at or {"prefill": 2.0 * device.tokens_per_step, "decode": 0.9 * device.slots}
        back = return_at or {side: amount / 4 for side, amount in borrow.items()}
        sides: dict[str, Side] = {}
        for worker in self._fleet.workers:
            own: Side = "prefill" if worker.name in self._prefill.book.views else "decode"
            sides[worker.name] = own
            (self._decode if own == "prefill" else self._prefill).join(worker.name, worker.scheduler.spec)
        self._pool = MixedPool(sides, borrow_at=borrow, return_at=back)
        self._serving: tuple[set[str], set[str]] = (set(sides), set(sides))
        self._assign(self.now)

    def _assign(self, now: float) -> None:
        """Whoever does not serve a side gets no more of its work."""
        serving = set(self._pool.serving("prefill")), set(self._pool.serving("decode"))
        for placer, new, old in zip((self._prefill, self._decode), serving, self._serving, strict=True):
            for name in new ^ old:
                placer.drain(name, draining=name not in new)
        joined, self._serving = serving[1] - self._serving[1], serving
        if joined:
            self._pull_waiting(now)

    def _review(self, now: float) -> None:
        duties = {}
        for name, view in self._decode.book.views.items():
            decoding = view.running + len(view.waiting) + len(self._coming[self._number[name]])
            duties[name] = Duty(self._prefill.book.views[name].queued, decoding)
        self._pool.review(duties)
        self._assign(now)

    def _decided(self, request: Request, verdict: Admit | Refuse, now: float) -> int | None:
        number = super()._decided(request, verdict, now)
        self._review(now)
        return number

    def _take(self, number: int, events: list[Event], now: float) -> None:
        super()._take(number, events, now)
        if events:
            self._review(now)

    def _leave(self, name: str, number: int, now: float) -> None:
        worker = self._fleet.workers[number].name
        if worker not in self._serving[1]:
            super()._leave(name, number, now)
            return
        self._give_up_room(name)
        self._prefill.ended(name)
        arrival = self._true[name]
        known, end = arrival.prompt_tokens + 1, arrival.prompt_tokens + arrival.max_tokens
        self._decode.submitted(Ask(name, known, end, end - known), worker)
