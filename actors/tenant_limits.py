"""The limits of all tenants, in step with the live directory: what admission reserves from before it looks at a
contract."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from actors.messages import Quota, UsageRow
from policies.limits import Denied, Grant, TenantLimits
from policies.vocabulary import Request, Tenant

__all__ = ["LimitsBook"]


class LimitsBook:
    """`tenants` is the live directory; `clock` gives monotonic seconds. Days are UTC."""

    def __init__(self, tenants: Mapping[str, Tenant], clock: Callable[[], float]) -> None:
        self._tenants = tenants
        self._clock = clock
        self._limits: dict[str, TenantLimits] = {}

    def reserve(self, request: Request, *, best_effort: bool = False) -> Grant | Denied | None:
        """Take what the request could use, or say which limit forbids it. None: the tenant is unknown.

        `best_effort`: above its rate a minute it is let in too, uncommitted.
        """
        limits = self.of(request.tenant)
        if limits is None:
            return None
        ends_in_s = 86_400 - time.time() % 86_400
        return limits.reserve(
            request.id,
            reserved_tokens(request),
            self._clock(),
            _day(),
            best_effort=best_effort,
            day_ends_in_s=ends_in_s,
        )

    def restore(self, request_id: str, tenant: str, tokens: int) -> None:
        """Count one that was admitted before a restart of ours."""
        limits = self.of(tenant)
        if limits is not None:
            limits.restore(request_id, tokens, self._clock(), _day())

    def restore_day(self, rows: list[UsageRow]) -> None:
        """Take over what the ledger says of today."""
        for row in rows:
            limits = self.of(row.tenant)
            if limits is not None:
                limits.restore_day(row.prompt_tokens + row.output_tokens, _day())

    def settle(self, request_id: str, tenant: str, used_tokens: int) -> None:
        """Give back what was not used."""
        if tenant in self._limits:
            self._limits[tenant].settle(request_id, used_tokens, self._clock())

    def cancel(self, request_id: str, tenant: str) -> None:
        """Give back everything: it never ran."""
        if tenant in self._limits:
            self._limits[tenant].cancel(request_id, self._clock())

    def quota(self, tenant: str) -> Quota | None:
        """What the x-ratelimit headers say; None for an unknown tenant."""
        limits = self.of(tenant)
        if limits is None:
            return None
        now = limits.snapshot(self._clock())
        return Quota(
            requests_limit=now.limit_requests,
            requests_left=now.remaining_requests,
            requests_reset_s=now.reset_requests_s,
            tokens_limit=now.limit_tokens,
            tokens_left=now.remaining_tokens,
            tokens_reset_s=now.reset_tokens_s,
        )

    def of(self, name: str) -> TenantLimits | None:
        """The state of a tenant's limits; None if the directory has no such tenant."""
        tenant = self._tenants.get(name)
        if tenant is None:
            return None
        state = self._limits.get(name)
        if state is None:
            state = self._limits[name] = TenantLimits(tenant.limits, self._clock())
        elif state.limits is not tenant.limits:
            state.update(tenant.limits, self._clock())
        return state


def reserved_tokens(request: Request) -> int:
    """All that a request could use."""
    return len(request.prompt) // 4 + request.max_tokens


def _day() -> int:
    return int(time.time() // 86_400)
