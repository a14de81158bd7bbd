"""Sessions of the live page: signed, not stored, so that every gateway of a stack takes a login made at any other.

A session is a random id with two times, signed under a key that is derived from the admin key. Nothing is kept, so
there is nothing to bound; a new admin key ends every session. A logout takes the cookie away from the browser, and the
gateway that hears it refuses the id for as long as a copy could live; at another gateway a copy stolen before lives
on until it has been idle for half an hour. RFC 2104 for the signature, RFC 6265bis for the cookie.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["IDLE_S", "LIFETIME_S", "Session", "Sessions"]

#: However busy, a session ends after this.
LIFETIME_S = 8 * 3600
#: A session that asked nothing for so long has ended.
IDLE_S = 30 * 60
#: A cookie is renewed at most so often.
_RENEW_S = 60
_ID_BYTES = 32
_MAX_CLOSED = 4096
_MAX_COOKIE_CHARS = 256


@dataclass(frozen=True, slots=True)
class Session:
    """`id` is a secret; `name` is how logs and the audit call it. Times are whole unix seconds."""

    id: str
    opened_s: int
    seen_s: int

    @property
    def name(self) -> str:
        return hashlib.sha256(self.id.encode()).hexdigest()[:8]

    @property
    def ends_s(self) -> int:
        """When it ends at the latest."""
        return self.opened_s + LIFETIME_S


class Sessions:
    """Opens, reads, renews and closes sessions. `now` gives unix seconds."""

    def __init__(self, admin_key: str, *, now: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(admin_key.encode(), b"headgate live page, sessions 1", "sha256")
        self._now = now
        self._closed: OrderedDict[str, int] = OrderedDict()  # id: when it would have ended
        # Cookies do not know ports. With the stack in its name, two stacks at one host do not log each other out.
        self.cookie_name = f"headgate_{hmac.digest(self._key, b'cookie', 'sha256').hex()[:8]}"

    def open(self) -> Session:
        now = int(self._now())
        return Session(_text(secrets.token_bytes(_ID_BYTES)), now, now)

    def cookie(self, session: Session) -> str:
        """The value that `read` takes."""
        body = f"{session.id}.{session.opened_s}.{session.seen_s}"
        return f"{body}.{self._sign(body)}"

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None if it is not ours, over, idle for too long or closed."""
        if len(cookie) > _MAX_COOKIE_CHARS or not cookie.isascii():
            return None
        body, _, signature = cookie.rpartition(".")
        if not hmac.compare_digest(signature, self._sign(body)):
            return None
        session_id, opened, seen = body.split(".")  # signed: of this form
        session = Session(session_id, int(opened), int(seen))
        now = self._now()
        if now >= session.ends_s or now >= session.seen_s + IDLE_S or session_id in self._closed:
            return None
        return session

    def renewed(self, session: Session) -> Session | None:
        """The session as seen now; None if its cookie is young enough to stay."""
        now = int(self._now())
        return replace(session, seen_s=now) if now - session.seen_s >= _RENEW_S else None

    def close(self, session: Session) -> None:
        """Refuse it from now on."""
        now = self._now()
        while self._closed and (len(self._closed) >= _MAX_CLOSED or next(iter(self._closed.values())) <= now):
            self._closed.popitem(last=False)
        self._closed[session.id] = session.ends_s

    def is_closed(self, session: Session) -> bool:
        """Whether it has ended by time or by logout; idleness is not looked at: for streams, which are not idle."""
        return session.id in self._closed or self._now() >= session.ends_s

    def csrf_token(self, session: Session) -> str:
        """What a request that changes something has to show beside the cookie."""
        return self._sign(f"csrf {session.id}")

    def _sign(self, text: str) -> str:
        return _text(hmac.digest(self._key, text.encode(), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
