"""Changes of tenants and keys: each checked, written to the audit stream first, then written by compare-and-set.

Nothing is changed unrecorded: where the audit stream does not answer, the change is refused. A change that then loses
a race is tried again on what it lost to, and a few losses later given up (409).
"""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from actors.runtime.errors import Conflict
from actors.runtime.transport import Bucket
from gateway.directory import Directory
from gateway.errors import ApiError
from gateway.keys import KeyRecord, KeyState, key_state, new_key, revoked, rotated
from gateway.mirror import Mirror
from policies.vocabulary import Tenant

__all__ = ["NAME", "AppendAudit", "AuditEntry", "Tenancy", "conflict", "iso", "not_found"]

#: append(JSON of an AuditEntry, its unique id): returns when it is stored, raises an ActorError where it is not.
AppendAudit = Callable[[bytes, str], Awaitable[object]]

#: So that listing and mirroring stay what they are made for; a stack with more is sharded.
MAX_TENANTS = 10_000
MAX_KEYS = 100_000
#: What a tenant may be called: a name in URLs, subjects, metrics and on command lines.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_ATTEMPTS = 5

R = TypeVar("R")
T = TypeVar("T", Tenant, KeyRecord)


class AuditEntry(msgspec.Struct, frozen=True):
    """Who did what to which tenant or key. Never a secret."""

    time: str  # ISO 8601, UTC
    actor: str
    action: str  # tenant.create, key.revoke, … ; with `.failed` at its end: the entry before it did not come to pass
    target: str
    details: dict[str, object]


def iso(unix_s: float | None) -> str | None:
    """A unix time as ISO 8601 in UTC, to the second."""
    if unix_s is None:
        return None
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def conflict(message: str) -> ApiError:
    return ApiError(message, status=409, code="conflict", should_retry=False)


def not_found(kind: str, name: str) -> ApiError:
    return ApiError(f"There is no {kind} {name[:100]!r}.", status=404, code="not_found", should_retry=False)


class Tenancy:
    """The operations behind the admin API. Each returns once this gateway's directory has the change.

    All raise ApiError (404, 409) and, where the store or the audit stream is away, an ActorError.
    """

    def __init__(
        self,
        tenants: Bucket,
        keys: Bucket,
        directory: Directory,
        *,
        pepper: bytes,
        audit: AppendAudit,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tenants = tenants
        self._keys = keys
        self._directory = directory
        self._pepper = pepper
        self._audit = audit
        self._now = now

    async def tenant(self, name: str) -> tuple[Tenant, int]:
        """From the store, with its revision."""
        return await self._read(self._tenants, name, Tenant, "tenant")

    async def key(self, key_id: str) -> KeyRecord:
        """From the store."""
        return (await self._read(self._keys, key_id, KeyRecord, "key"))[0]

    async def create_tenant(self, tenant: Tenant, *, actor: str) -> tuple[Tenant, int]:
        if await self._tenants.get(tenant.name) is not None:
            raise conflict(f"The tenant {tenant.name!r} exists: change it instead.")
        if len(self._directory.tenants()) >= MAX_TENANTS:
            raise conflict(f"There are {MAX_TENANTS} tenants, the most that a stack takes.")
        tenant = msgspec.structs.replace(tenant, created=iso(self._now()) or "")
        details = msgspec.to_builtins(tenant)
        revision = await self._change(
            "tenant.create",
            tenant.name,
            details,
            actor=actor,
            write=lambda: self._create(self._tenants, self._directory.tenants_mirror, tenant.name, tenant),
        )
        return tenant, revision

    async def change_tenant(
        self,
        name: str,
        change: Callable[[Tenant], Tenant],
        *,
        details: dict[str, object],
        actor: str,
        revision: int | None = None,
    ) -> tuple[Tenant, int]:
        """Apply `change` to what is stored now; `revision`, if given, must be that of what is stored."""
        change((await self.tenant(name))[0])  # what is not valid is refused before it is recorded

        async def write() -> tuple[Tenant, int]:
            return await self._update(
                self._tenants, self._directory.tenants_mirror, name, Tenant, "tenant", change, revision=revision
            )

        return await self._change("tenant.change", name, details, actor=actor, write=write)

    async def delete_tenant(self, name: str, *, actor: str) -> int:
        """Revoke all its keys, then delete it. Returns how many keys that were. Repeat it if it fails half-way."""
        await self.tenant(name)
        live = [record.id for record in self._directory.keys(name) if record.revoked_unix_s is None]
        for key_id in live:
            await self.revoke_key(key_id, actor=actor)

        async def write() -> None:
            await self._tenants.delete(name)
            await self._directory.tenants_mirror.seen(name, None)

        await self._change("tenant.delete", name, {"revoked_keys": live}, actor=actor, write=write)
        return len(live)

    async def create_key(
        self,
        tenant: str,
        *,
        actor: str,
        expires_unix_s: float | None = None,
        models: tuple[str, ...] | None = None,
        tier_ceiling: str | None = None,
    ) -> tuple[KeyRecord, str]:
        """A new key of `tenant`; its text is returned here and never again."""
        await self.tenant(tenant)
        if len(self._directory.keys()) >= MAX_KEYS:
            raise conflict(f"There are {MAX_KEYS} keys, the most that a stack takes.")
        key_id, text, digest = new_key(self._pepper)
        record = KeyRecord(
            id=key_id,
            tenant=tenant,
            digest=digest,
            created_unix_s=self._now(),
            expires_unix_s=expires_unix_s,
            models=models,
            tier_ceiling=tier_ceiling,
        )
        await self._change(
            "key.create",
            key_id,
            {"tenant": tenant, "expires": iso(expires_unix_s), "models": models, "tier_ceiling": tier_ceiling},
            actor=actor,
            write=lambda: self._create(self._keys, self._directory.keys_mirror, key_id, record),
        )
        return record, text

    async def rotate_key(self, key_id: str, *, grace_s: float, actor: str) -> tuple[KeyRecord, str]:
        """A new secret under the same id; the old one stays good for `grace_s` seconds."""
        made = ""

        def change(record: KeyRecord) -> KeyRecord:
            nonlocal made
            state = key_state(record, self._now())
            if state in (KeyState.revoked, KeyState.expired):
                raise conflict(f"The key {key_id!r} is {state}: create a new one instead.")
            changed, made = rotated(record, self._pepper, grace_s=grace_s, now_unix_s=self._now())
            return changed

        record = await self._change_key("key.rotate", key_id, change, {"grace_s": grace_s}, actor=actor)
        return record, made

    async def revoke_key(self, key_id: str, *, actor: str) -> KeyRecord:
        """From now on it is refused, on this gateway at once and on the others within milliseconds. Idempotent."""
        record = await self.key(key_id)
        if record.revoked_unix_s is not None:
            return record
        return await self._change_key(
            "key.revoke", key_id, lambda record: revoked(record, now_unix_s=self._now()), {}, actor=actor
        )

    async def _change_key(
        self,
        action: str,
        key_id: str,
        change: Callable[[KeyRecord], KeyRecord],
        details: dict[str, object],
        *,
        actor: str,
    ) -> KeyRecord:
        change(await self.key(key_id))

        async def write() -> KeyRecord:
            mirror = self._directory.keys_mirror
            return (await self._update(self._keys, mirror, key_id, KeyRecord, "key", change))[0]

        return await self._change(action, key_id, details, actor=actor, write=write)

    async def _change(
        self,
        action: str,
        target: str,
        details: dict[str, object],
        *,
        actor: str,
        write: Callable[[], Awaitable[R]],
    ) -> R:
        await self._record(action, target, details, actor)
        try:
            return await write()
        except Exception as error:
            await self._record(f"{action}.failed", target, {"error": str(error)}, actor)
            raise

    async def _record(self, action: str, target: str, details: dict[str, object], actor: str) -> None:
        entry = AuditEntry(iso(self._now()) or "", actor, action, target, details)
        await self._audit(msgspec.json.encode(entry), uuid.uuid4().hex)

    async def _read(self, bucket: Bucket, key: str, kind: type[T], word: str) -> tuple[T, int]:
        # Names come from URLs; what the store would not even take as a key is not there.
        entry = await bucket.get(key) if NAME.fullmatch(key) else None
        if entry is None:
            raise not_found(word, key)
        try:
            return msgspec.json.decode(entry.value, type=kind), entry.revision
        except msgspec.MsgspecError as error:
            raise conflict(f"The stored {word} {key!r} cannot be read: {error}") from error

    async def _create(self, bucket: Bucket, mirror: Mirror, key: str, value: Tenant | KeyRecord) -> int:
        packed = msgspec.json.encode(value)
        try:
            revision = await bucket.create(key, packed)
        except Conflict:
            raise conflict(f"{key!r} was created by somebody else meanwhile.") from None
        await mirror.seen(key, packed)
        return revision

    async def _update(
        self,
        bucket: Bucket,
        mirror: Mirror,
        key: str,
        kind: type[T],
        word: str,
        change: Callable[[T], T],
        *,
        revision: int | None = None,
    ) -> tuple[T, int]:
        for _ in range(_ATTEMPTS):
            value, latest = await self._read(bucket, key, kind, word)
            if revision is not None and revision != latest:
                raise conflict(f"The {word} {key!r} is at revision {latest}, not {revision}: read it again.")
            changed = change(value)
            packed = msgspec.json.encode(changed)
            try:
                written = await bucket.update(key, packed, latest)
            except Conflict:
                continue
            await mirror.seen(key, packed)
            return changed, written
        raise conflict(f"The {word} {key!r} is being changed by somebody else, {_ATTEMPTS} times in a row: try again.")
