"""From the URL of a NATS server, and a password that is kept apart from it, to a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from actors.runtime import NatsTransport
from headgate.errors import HeadgateError

__all__ = ["login_of", "open_transport", "read_secret"]


def open_transport(url: str, *, password: str | None = None, **options: Any) -> NatsTransport:
    """A transport for `url` (several, with commas between: the servers of a cluster), not connected yet.

    `password` goes with the user of the URL; without it the URL has both, or neither. `options` as of `NatsTransport`.

    :raises HeadgateError: there is a password, and no user in the URL.
    """
    if password is None:
        return NatsTransport(url, **options)
    user, bare = login_of(url)
    if not user:
        raise HeadgateError(f"{bare} names no user for its password: write nats://ROLE@HOST:PORT")
    return NatsTransport(bare, user=user, password=password, **options)


def login_of(url: str) -> tuple[str, str]:
    """The user of a URL ("" for none), and the URL without user and password."""
    user, bare = "", []
    for one in url.split(","):
        parts = urlsplit(one.strip())
        user = user or unquote(parts.username or "")
        bare.append(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])))
    return user, ",".join(bare)


def read_secret(path: str, *, of: str) -> str | None:
    """What a secret file holds, without the line's end; None where no file is named. `of`: what it is, for the error.

    :raises HeadgateError: it cannot be read, or is empty.
    """
    if not path:
        return None
    try:
        secret = Path(path).read_text().strip()
    except OSError as error:
        raise HeadgateError(f"{of}: {path} cannot be read: {error.strerror}") from error
    if not secret:
        raise HeadgateError(f"{of}: {path} is empty")
    return secret
