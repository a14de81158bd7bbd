"""API keys as values: their text, what is kept of them, and whether one is valid. Pure: time and randomness come in.

A key is `sk-hg-<id>-<secret>`: 12 characters of public id, under which the record lies, then 32 random bytes in base62
(43 characters) and a checksum (6). The checksum covers everything before it, so that a typo, or a key of another
class, is refused without a look-up. Admin keys are a class of their own, `sk-hg-admin-<secret>`, and never stored.

At rest there is an HMAC-SHA-256 with the server's pepper. A slow hash would protect secrets that people make up; it
adds nothing to 256 random bits, and would cost each request milliseconds.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
import zlib
from collections.abc import Callable
from enum import StrEnum

import msgspec

__all__ = [
    "ADMIN_PREFIX",
    "KEY_PREFIX",
    "KeyRecord",
    "KeyState",
    "Verdict",
    "check_key",
    "key_state",
    "new_admin_key",
    "new_key",
    "parse_admin_key",
    "parse_key",
    "revoked",
    "rotated",
]

KEY_PREFIX = "sk-hg-"
ADMIN_PREFIX = "sk-hg-admin-"

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_DIGITS = string.digits + string.ascii_lowercase  # ids are read aloud and typed into commands
_ID_LENGTH = 12  # "admin" has 5: no id is ever taken for the other class
_SECRET_BYTES = 32
_SECRET_LENGTH = 43  # 62^43 > 2^256
_CHECKSUM_LENGTH = 6  # 62^6 > 2^32
_TAIL = f"[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
_KEY = re.compile(rf"sk-hg-([0-9a-z]{{{_ID_LENGTH}}})-{_TAIL}\Z", re.ASCII)
_ADMIN_KEY = re.compile(rf"sk-hg-admin-{_TAIL}\Z", re.ASCII)
# Compared against where there is no digest, so that an unknown id costs the same as a wrong secret.
_NO_DIGEST = "0" * 64

RandomBytes = Callable[[int], bytes]


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a key, as JSON in the bucket `keys` under its id. Times are unix seconds; the secret is not
    here.
    """

    id: str
    tenant: str
    digest: str  # hex HMAC of the whole key
    created_unix_s: float
    expires_unix_s: float | None = None
    revoked_unix_s: float | None = None
    rotated_unix_s: float | None = None
    previous_digest: str = ""  # of the secret before the last rotation, good until `grace_until_unix_s`
    grace_until_unix_s: float = 0.0
    models: tuple[str, ...] | None = None  # None: all
    tier_ceiling: str | None = None  # None: that of the tenant's contract


class KeyState(StrEnum):
    """What lists show."""

    active = "active"
    rotating = "rotating"  # active, and the secret before the last rotation is still good
    expired = "expired"
    revoked = "revoked"


class Verdict(StrEnum):
    """What a presented key is. Everything but `valid` is a 401."""

    valid = "valid"
    unknown = "unknown"  # no such id, or not its secret: never told apart
    superseded = "superseded"  # the secret before the last rotation, after its grace
    expired = "expired"
    revoked = "revoked"


def new_key(pepper: bytes, *, random_bytes: RandomBytes = secrets.token_bytes) -> tuple[str, str, str]:
    """A new id, the key with it, and the digest to keep."""
    number = int.from_bytes(random_bytes(8), "big")
    key_id = _in_digits(number, _ID_DIGITS, _ID_LENGTH)
    key = _with_secret(f"{KEY_PREFIX}{key_id}-", random_bytes)
    return key_id, key, _digest(key, pepper)


def new_admin_key(*, random_bytes: RandomBytes = secrets.token_bytes) -> str:
    """A new admin key."""
    return _with_secret(ADMIN_PREFIX, random_bytes)


def parse_key(text: str) -> str | None:
    """The id of a tenant's key; None if it is not one, or has a typo. Looks nothing up."""
    match = _KEY.match(text)
    return match[1] if match is not None and _checksum_holds(text) else None


def parse_admin_key(text: str) -> bool:
    """Whether `text` is an admin key as `new_admin_key` makes them, without a typo."""
    return _ADMIN_KEY.match(text) is not None and _checksum_holds(text)


def check_key(record: KeyRecord | None, key: str, *, pepper: bytes, now_unix_s: float) -> Verdict:
    """Whether `key`, well-formed, may be used now. Takes the same time for an unknown id (`record` None) and a wrong
    secret.

    Why a key is not valid any more is told only to who has its secret.
    """
    presented = _digest(key, pepper)
    is_current = hmac.compare_digest(presented, record.digest if record else _NO_DIGEST)
    is_previous = hmac.compare_digest(presented, (record.previous_digest if record else "") or _NO_DIGEST)
    if record is None or not (is_current or is_previous):
        return Verdict.unknown
    if record.revoked_unix_s is not None:
        return Verdict.revoked
    if record.expires_unix_s is not None and now_unix_s >= record.expires_unix_s:
        return Verdict.expired
    if not is_current and now_unix_s >= record.grace_until_unix_s:
        return Verdict.superseded
    return Verdict.valid


def key_state(record: KeyRecord, now_unix_s: float) -> KeyState:
    """The state of a key as people see it."""
    if record.revoked_unix_s is not None:
        return KeyState.revoked
    if record.expires_unix_s is not None and now_unix_s >= record.expires_unix_s:
        return KeyState.expired
    if record.previous_digest and now_unix_s < record.grace_until_unix_s:
        return KeyState.rotating
    return KeyState.active


def rotated(
    record: KeyRecord,
    pepper: bytes,
    *,
    grace_s: float,
    now_unix_s: float,
    random_bytes: RandomBytes = secrets.token_bytes,
) -> tuple[KeyRecord, str]:
    """The record with a new secret under the same id, and the new key. The secret until now stays good for `grace_s`.

    One before that ends at once, whatever its grace was.
    """
    key = _with_secret(f"{KEY_PREFIX}{record.id}-", random_bytes)
    changed = msgspec.structs.replace(
        record,
        digest=_digest(key, pepper),
        previous_digest=record.digest,
        grace_until_unix_s=now_unix_s + grace_s,
        rotated_unix_s=now_unix_s,
    )
    return changed, key


def revoked(record: KeyRecord, *, now_unix_s: float) -> KeyRecord:
    """The record of a key that is valid no more. The time of a first revocation stays."""
    if record.revoked_unix_s is not None:
        return record
    return msgspec.structs.replace(record, revoked_unix_s=now_unix_s)


def _with_secret(prefix: str, random_bytes: RandomBytes) -> str:
    body = prefix + _in_digits(int.from_bytes(random_bytes(_SECRET_BYTES), "big"), _DIGITS, _SECRET_LENGTH)
    return body + _checksum(body)


def _checksum_holds(key: str) -> bool:
    return _checksum(key[:-_CHECKSUM_LENGTH]) == key[-_CHECKSUM_LENGTH:]


def _checksum(body: str) -> str:
    # CRC-32 finds every error within 32 bits in a row: any one character, and any two neighbours swapped.
    return _in_digits(zlib.crc32(body.encode()), _DIGITS, _CHECKSUM_LENGTH)


def _in_digits(number: int, digits: str, length: int) -> str:
    """The last `length` digits of `number`."""
    out = []
    for _ in range(length):
        number, digit = divmod(number, len(digits))
        out.append(digits[digit])
    return "".join(reversed(out))


def _digest(key: str, pepper: bytes) -> str:
    return hmac.digest(pepper, key.encode(), "sha256").hex()
