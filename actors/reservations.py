"""What admission has let in and not seen the end of: its memory of reservations.

A reservation passes three stages: admitted and in no report of load yet (it counts in forecasts), reported by a
scheduler, and over. A gateway's word (`Live`) confirms that it is under way; without any for a while it is abandoned.
"""

from __future__ import annotations

from collections import OrderedDict

from actors.messages import Live
from policies.admission.forecast import Reservation
from policies.vocabulary import Request, WorkerLoad

__all__ = ["Reservations"]

#: A reservation that no report of load shows by then is not on its way any more.
_PENDING_S = 2.0
#: A reservation that no gateway confirms for so long is given back.
_ABANDONED_S = 5.0
#: Ends that are remembered. A gateway's word is older than an end by milliseconds.
_KEPT_OVER = 4096


class Reservations:
    """Times are seconds of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._pending: dict[str, dict[str, tuple[Reservation, float]]] = {}  # model → id → (reservation, since)
        self._confirmed: dict[str, float] = {}  # id → when it was last known to be under way
        self._over: OrderedDict[str, None] = OrderedDict()
        self.tenants: dict[str, str] = {}  # id → tenant, of everything under way

    def add(self, request: Request, reservation: Reservation, now: float) -> None:
        """Admitted."""
        self._pending.setdefault(request.model, {})[request.id] = (reservation, now)
        self._confirmed[request.id] = now
        self.tenants[request.id] = request.tenant

    def pending(self, model: str) -> list[Reservation]:
        """Those that no report shows yet, in the order of admission."""
        return [reservation for reservation, _ in self._pending.get(model, {}).values()]

    def reported(self, model: str, loads: list[WorkerLoad], now: float) -> None:
        """A report of load came: what it shows is counted there from now on."""
        pending = self._pending.get(model)
        if not pending:
            return
        for load in loads:
            for request in load.requests:
                pending.pop(request.id, None)
        for request_id in [r for r, (_, since) in pending.items() if now - since > _PENDING_S]:
            del pending[request_id]

    def live(self, live: Live, now: float) -> list[tuple[str, str, int]]:
        """A gateway says what it has under way. Returns (id, tenant, tokens) of those that were not known here.

        What ended while this was on its way comes too late: its end and this are not heard in the order of sending.
        """
        unknown = []
        for entry in zip(live.requests, live.tenants, live.tokens, strict=True):
            request_id, tenant, _ = entry
            if request_id in self._over:
                continue
            if request_id not in self._confirmed:
                unknown.append(entry)
            self._confirmed[request_id] = now
            self.tenants[request_id] = tenant
        return unknown

    def end(self, request_id: str) -> str | None:
        """Over for good. Returns its tenant, None if it was not known."""
        self._over[request_id] = None
        if len(self._over) > _KEPT_OVER:
            self._over.popitem(last=False)
        return self._remove(request_id)

    def _remove(self, request_id: str) -> str | None:
        self._confirmed.pop(request_id, None)
        for pending in self._pending.values():
            pending.pop(request_id, None)
        return self.tenants.pop(request_id, None)

    def abandoned(self, now: float) -> list[tuple[str, str]]:
        """(id, tenant) of those that no gateway has confirmed for a while; they are removed here."""
        gone = [request_id for request_id, at in self._confirmed.items() if now - at > _ABANDONED_S]
        return [(request_id, self._remove(request_id) or "") for request_id in gone]
