"""Who is asking: what the key of a request stands for, as far as serving it needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from policies.vocabulary import Tenant

__all__ = ["Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a valid key.

    `models` None means all of them. `tier_ceiling` names the best tier that this key may use, None that of the
    tenant's contract. `salt` is the root of the tenant group's prefix hash chain: HMAC(server secret, group), never
    anything that a client sent.
    """

    key_id: str
    tenant: Tenant
    models: tuple[str, ...] | None
    tier_ceiling: str | None
    salt: bytes
