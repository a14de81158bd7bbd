"""The secrets of a stack: made at the first start, kept in files that only their owner may read, or given from outside.

Losing the pepper invalidates every tenant's key; so it belongs into the backup, with the bucket of the keys, or into
the environment from a secret manager. All gateways of a stack need the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import GatewayError
from gateway.keys import ADMIN_PREFIX, new_admin_key

__all__ = ["ADMIN_KEY_FILE", "BadSecret", "Secrets", "check_admin_key", "load_secrets"]

ADMIN_KEY_FILE = "admin.key"
_PEPPER_FILE = "pepper.key"
_SALT_FILE = "cache-salt.key"

_LEAST_LENGTH = 32
_LEAST_DISTINCT = 12


class BadSecret(GatewayError):
    """A secret is weak, or a file of one is readable by others. Start is refused. The message never repeats it."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """`pepper` keys the digests of API keys, `cache_salt` the roots of the tenants' prefix caches."""

    pepper: bytes = field(repr=False)
    cache_salt: bytes = field(repr=False)
    admin_key: str = field(repr=False)


def load_secrets(data_dir: Path | str, *, environ: Mapping[str, str] | None = None) -> Secrets:
    """Read the secrets, making the files that are missing (0600; several processes may do so at once and agree).

    HEADGATE_PEPPER, HEADGATE_CACHE_SALT and HEADGATE_ADMIN_KEY come before the files `pepper.key`, `cache-salt.key`
    and `admin.key`; and files that HEADGATE_PEPPER_FILE, HEADGATE_CACHE_SALT_FILE and HEADGATE_ADMIN_KEY_FILE name
    come first. Who may read those is for whoever mounts them to say: container engines mount secrets for every user.

    :raises BadSecret: one is too weak, or cannot be read, or its file may be read by others.
    """
    environ = os.environ if environ is None else environ
    directory = Path(data_dir)

    def secret(variable: str, file: str, make: Callable[[], str]) -> str:
        value = environ.get(variable)
        source = variable
        if mounted := environ.get(f"{variable}_FILE"):
            source = f"{variable}_FILE={mounted}"
            value = _read(mounted, source)
        if value is None:
            source = str(directory / file)
            value = _read_or_make(directory / file, make)
        _refuse_weak(value, source)
        return value

    pepper = secret("HEADGATE_PEPPER", _PEPPER_FILE, lambda: secrets.token_hex(32))
    cache_salt = secret("HEADGATE_CACHE_SALT", _SALT_FILE, lambda: secrets.token_hex(32))
    admin_key = secret("HEADGATE_ADMIN_KEY", ADMIN_KEY_FILE, new_admin_key)
    check_admin_key(admin_key)
    return Secrets(pepper=pepper.encode(), cache_salt=cache_salt.encode(), admin_key=admin_key)


def check_admin_key(key: str) -> None:
    """Refuse an admin key that could be guessed, or taken for a tenant's.

    :raises BadSecret: not `sk-hg-admin-` and 32 or more further characters, at least 12 of them different.
    """
    if not key.startswith(ADMIN_PREFIX):
        raise BadSecret(
            f"the admin key does not begin with {ADMIN_PREFIX!r}; leave HEADGATE_ADMIN_KEY out to have one made"
        )
    _refuse_weak(key.removeprefix(ADMIN_PREFIX), "the admin key")


def _refuse_weak(value: str, source: str) -> None:
    if len(value) < _LEAST_LENGTH or len(set(value)) < _LEAST_DISTINCT:
        raise BadSecret(
            f"{source} is too weak: {len(value)} characters, {len(set(value))} of them different; "
            f"at least {_LEAST_LENGTH} and {_LEAST_DISTINCT} are needed, such as `openssl rand -hex 32` gives"
        )


def _read(path: str, source: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise BadSecret(f"{source} cannot be read: {error.strerror}") from error


def _read_or_make(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a link to a finished file, and the first of several processes wins.
        draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(make() + "\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise BadSecret(f"{path} has mode {mode:04o}, so that others may read it: run `chmod 600 {path}`")
    return path.read_text().strip()
