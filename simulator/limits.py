"""Tenants' limits in a simulation: those of the running stack, on the simulation's clock.

Only tenants of the workload that have one are looked at. Days begin with the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.admission import Refuse
from policies.limits import Denied, Grant, TenantLimits
from policies.vocabulary import Limits, Request, Tenant

__all__ = ["SimulatedLimits"]

_DAY_S = 86_400.0


class SimulatedLimits:
    """`best_effort`: above its rate a minute a tenant is let in too, uncommitted (`Policy.above_rate`)."""

    def __init__(self, tenants: Mapping[str, Tenant], *, best_effort: bool) -> None:
        self._best_effort = best_effort
        self._of = {name: TenantLimits(t.limits, 0.0) for name, t in tenants.items() if t.limits != Limits()}

    def reserve(self, request: Request, now: float) -> bool | Refuse:
        """Take what the request could use. Whether it is within its tenant's committed rate, or what forbids it."""
        limits = self._of.get(request.tenant)
        if limits is None:
            return True
        taken: Grant | Denied = limits.reserve(
            request.id,
            len(request.prompt) // 4 + request.max_tokens,
            now,
            int(now // _DAY_S),
            best_effort=self._best_effort,
            day_ends_in_s=_DAY_S - now % _DAY_S,
        )
        if isinstance(taken, Grant):
            return taken.committed
        return Refuse(
            reason=taken.reason, measured=taken.measured, threshold=taken.limit, retry_after_s=taken.retry_after_s
        )

    def cancel(self, request: str, tenant: str, now: float) -> None:
        """It was refused after all: all of it goes back."""
        limits = self._of.get(tenant)
        if limits is not None:
            limits.cancel(request, now)

    def settle(self, request: str, tenant: str, used_tokens: int, now: float) -> None:
        """It is over."""
        limits = self._of.get(tenant)
        if limits is not None:
            limits.settle(request, used_tokens, now)
