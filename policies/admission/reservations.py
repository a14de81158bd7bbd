"""What admission has let in and not seen the end of: its memory of reservations.

A reservation passes three stages: admitted and in no report of load yet (it counts in forecasts), reported by a
scheduler, and over. A gateway's word confirms that it is under way; without any for a while it is abandoned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from policies.admission.worker_state import Reservation
from policies.vocabulary import WorkerLoad

__all__ = ["Reservations"]

#: A reservation that no report of load shows by then is not on its way any more.
_PENDING_S = 2.0
#: A reservation that no gateway confirms for so long is given back.
_ABANDONED_S = 5.0
#: Ends that are remembered. A gateway's word is older than an end by milliseconds.
_KEPT_OVER = 4096


class Reservations:
    """Times are seconds of the caller's monotonic clock. Every call is O(1) for each request that it speaks of."""

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], dict[str, tuple[Reservation, float]]] = {}  # by (model, worker), then id
        self._where: dict[str, tuple[str, str]] = {}  # id → where it is pending
        self._since: OrderedDict[str, float] = OrderedDict()  # the pending, oldest first
        self._confirmed: dict[str, float] = {}  # id → when it was last known to be under way
        self._over: OrderedDict[str, None] = OrderedDict()
        self.tenants: dict[str, str] = {}  # id → tenant, of everything under way

    def add(self, model: str, tenant: str, reservation: Reservation, now: float) -> None:
        """Admitted."""
        request_id, where = reservation.id, (model, reservation.worker)
        self._unpend(request_id)
        self._pending.setdefault(where, {})[request_id] = (reservation, now)
        self._where[request_id] = where
        self._since[request_id] = now
        self._confirmed[request_id] = now
        self.tenants[request_id] = tenant

    def pending(self, model: str, worker: str) -> list[Reservation]:
        """Those that no report of this worker shows yet, in the order of admission."""
        return [reservation for reservation, _ in self._pending.get((model, worker), {}).values()]

    def reported(self, loads: Sequence[WorkerLoad], now: float) -> set[tuple[str, str]]:
        """A report of load came: what it shows is counted there from now on. Returns where less is pending now."""
        changed = set[tuple[str, str]]()
        if not self._where:
            return changed
        for load in loads:
            for request in load.requests:
                if request.id in self._where:
                    changed.add(self._unpend(request.id))
        while self._since and now - self._since[(oldest := next(iter(self._since)))] > _PENDING_S:
            changed.add(self._unpend(oldest))
        return changed - {("", "")}

    def live(self, entries: Iterable[tuple[str, str, int]], now: float) -> list[tuple[str, str, int]]:
        """A gateway says what it has under way, as (id, tenant, tokens). Returns those that were not known here.

        What ended while this was on its way comes too late: its end and this are not heard in the order of sending.
        """
        unknown = []
        for entry in entries:
            request_id, tenant, _ = entry
            if request_id in self._over:
                continue
            if request_id not in self._confirmed:
                unknown.append(entry)
            self._confirmed[request_id] = now
            self.tenants[request_id] = tenant
        return unknown

    def end(self, request_id: str) -> tuple[str | None, tuple[str, str]]:
        """Over for good. Returns its tenant, None if it was not known, and where it was pending (("", "") nowhere)."""
        self._over[request_id] = None
        if len(self._over) > _KEPT_OVER:
            self._over.popitem(last=False)
        return self._remove(request_id)

    def abandoned(self, now: float) -> list[tuple[str, str, tuple[str, str]]]:
        """(id, tenant, where it was pending) of those that no gateway has confirmed for a while; they leave."""
        gone = [request_id for request_id, at in self._confirmed.items() if now - at > _ABANDONED_S]
        left = []
        for request_id in gone:
            tenant, where = self._remove(request_id)
            left.append((request_id, tenant or "", where))
        return left

    def _remove(self, request_id: str) -> tuple[str | None, tuple[str, str]]:
        self._confirmed.pop(request_id, None)
        return self.tenants.pop(request_id, None), self._unpend(request_id)

    def _unpend(self, request_id: str) -> tuple[str, str]:
        where = self._where.pop(request_id, ("", ""))
        self._since.pop(request_id, None)
        pending = self._pending.get(where)
        if pending is not None:
            pending.pop(request_id, None)
            if not pending:
                del self._pending[where]
        return where
