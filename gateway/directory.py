"""Who may come in: the tenants and keys of the stack, as one gateway knows them at this moment.

Authentication reads memory only, so it works, and costs the same, while NATS is away. A revocation is pushed to every
gateway by its watch, within milliseconds.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import structlog

from actors.runtime.transport import Bucket
from gateway.errors import Unauthorized
from gateway.keys import KeyRecord, Verdict, check_key, parse_admin_key, parse_key
from gateway.mirror import Mirror
from gateway.principal import Principal
from policies.vocabulary import Tenant

__all__ = ["KEYS_BUCKET", "TENANTS_BUCKET", "Directory", "bearer", "cache_salt"]

TENANTS_BUCKET = "tenants"
KEYS_BUCKET = "keys"

T = TypeVar("T")

_LONGEST_HEADER = 512
_BEARER = re.compile(r"bearer +(\S+) *\Z", re.IGNORECASE)
_WHY = {
    Verdict.unknown: "The API key is not known here.",
    Verdict.superseded: "The API key was rotated, and the grace period of its old secret is over.",
    Verdict.expired: "The API key has expired.",
    Verdict.revoked: "The API key was revoked.",
}


class Directory:
    """Tenants by name and keys by id, live. `start` before use; `now` gives unix seconds."""

    def __init__(
        self,
        tenants: Bucket,
        keys: Bucket,
        *,
        pepper: bytes,
        salt_secret: bytes,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pepper = pepper
        self._salt_secret = salt_secret
        self._now = now
        self._tenants: dict[str, Tenant] = {}
        self._keys: dict[str, KeyRecord] = {}
        self._principals: dict[str, Principal] = {}
        self._log = structlog.get_logger()
        self.tenants_mirror = Mirror(tenants, self._tenant_changed)
        self.keys_mirror = Mirror(keys, self._key_changed)

    async def start(self) -> None:
        """Returns when all tenants and keys are known. :raises StoreUnavailable: the buckets do not answer."""
        await self.tenants_mirror.start()
        await self.keys_mirror.start()

    async def stop(self) -> None:
        await self.keys_mirror.stop()
        await self.tenants_mirror.stop()

    def authenticate(self, authorization: str | None) -> Principal:
        """The holder of the key in an Authorization header.

        :raises Unauthorized: missing, malformed, unknown, wrong, superseded, expired or revoked, or its tenant was
        deleted.
        """
        key = bearer(authorization)
        if key is None:
            raise Unauthorized()
        key_id = parse_key(key)
        if key_id is None:
            if parse_admin_key(key):
                raise Unauthorized("This is an admin key: it opens the admin port alone. Use a key of a tenant.")
            raise Unauthorized("The API key is malformed: it has a typo, or is cut short.")
        verdict = check_key(self._keys.get(key_id), key, pepper=self._pepper, now_unix_s=self._now())
        if verdict is not Verdict.valid:
            raise Unauthorized(_WHY[verdict])
        principal = self._principals.get(key_id) or self._principal(self._keys[key_id])
        if principal is None:
            raise Unauthorized("The tenant of this API key was deleted.")
        return principal

    def tenant(self, name: str) -> Tenant | None:
        return self._tenants.get(name)

    def tenants(self) -> list[Tenant]:
        """By name."""
        return [self._tenants[name] for name in sorted(self._tenants)]

    def key(self, key_id: str) -> KeyRecord | None:
        return self._keys.get(key_id)

    def keys(self, tenant: str = "") -> list[KeyRecord]:
        """Those of `tenant`, or all: by tenant, then in the order of their making."""
        chosen = (record for record in self._keys.values() if not tenant or record.tenant == tenant)
        return sorted(chosen, key=lambda record: (record.tenant, record.created_unix_s, record.id))

    def _principal(self, record: KeyRecord) -> Principal | None:
        tenant = self._tenants.get(record.tenant)
        if tenant is None:
            return None
        principal = Principal(
            key_id=record.id,
            tenant=tenant,
            models=record.models,
            tier_ceiling=record.tier_ceiling,
            salt=cache_salt(self._salt_secret, tenant),
        )
        self._principals[record.id] = principal
        return principal

    def _tenant_changed(self, name: str, value: bytes | None) -> None:
        self._principals.clear()
        tenant = self._decoded(TENANTS_BUCKET, name, value, Tenant)
        if tenant is None:
            self._tenants.pop(name, None)
        else:
            self._tenants[name] = tenant

    def _key_changed(self, key_id: str, value: bytes | None) -> None:
        self._principals.pop(key_id, None)
        record = self._decoded(KEYS_BUCKET, key_id, value, KeyRecord)
        if record is None:
            self._keys.pop(key_id, None)
        else:
            self._keys[key_id] = record

    def _decoded(self, bucket: str, key: str, value: bytes | None, kind: type[T]) -> T | None:
        """None also for what cannot be read: who is not known does not come in."""
        if value is None:
            return None
        try:
            return msgspec.json.decode(value, type=kind)
        except msgspec.MsgspecError as error:
            self._log.error("an entry cannot be read and counts as absent", bucket=bucket, key=key, error=str(error))
            return None


def bearer(authorization: str | None) -> str | None:
    """The token of an Authorization header of the scheme Bearer; None if it is anything else."""
    if authorization is None or len(authorization) > _LONGEST_HEADER:
        return None
    match = _BEARER.match(authorization)
    return match[1] if match is not None else None


def cache_salt(secret: bytes, tenant: Tenant) -> bytes:
    """The root of the tenant's prefix hash chain, 16 bytes. Tenants of one group share it; a name is never a group."""
    label = f"group\0{tenant.group}" if tenant.group else f"tenant\0{tenant.name}"
    return hmac.digest(secret, label.encode(), "sha256")[:16]
