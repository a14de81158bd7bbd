"""Who may use the admin API: the bearer of the admin key, or the live page with its session.

A cookie is sent by the browser whoever makes it ask, so it counts only when the request is the page's own: it comes
from the same origin, and where it changes something it repeats the session's token in a header, which no form and no
foreign script can set.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.directory import bearer
from gateway.errors import ApiError
from gateway.page.sessions import Session, Sessions

__all__ = ["CSRF_HEADER", "AdminDoor", "is_foreign"]

CSRF_HEADER = "x-headgate-csrf"
_SAFE = ("GET", "HEAD")


class AdminDoor:
    """`sessions` None: only the key opens."""

    def __init__(self, admin_key: str, sessions: Sessions | None = None) -> None:
        self._fingerprint = hashlib.sha256(admin_key.encode()).digest()
        self._sessions = sessions

    def is_key(self, text: str) -> bool:
        """Whether it is the admin key; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(hashlib.sha256(text.encode()).digest(), self._fingerprint)

    def session(self, http: HttpRequest) -> Session | None:
        """The session that the request's cookie is of, wherever the request comes from."""
        if self._sessions is None:
            return None
        return self._sessions.read(http.cookies.get(self._sessions.cookie_name, ""))

    def enter(self, http: HttpRequest) -> Session | None:
        """The session that asks, or None for the bearer of the key.

        :raises ApiError: 401 without key and session; 403 where the session's request is not the page's own.
        """
        authorization = http.headers.get("authorization")
        if authorization is None and (session := self.session(http)) is not None:
            self.check_own(http, session)
            return session
        if not self.is_key(bearer(authorization) or ""):
            raise ApiError(
                "The admin key is needed: send `Authorization: Bearer sk-hg-admin-...`, or sign in on the live page.",
                status=401,
                code="invalid_api_key",
                should_retry=False,
                headers=((b"www-authenticate", b"Bearer"),),
            )
        return None

    def check_own(self, http: HttpRequest, session: Session) -> None:
        """:raises ApiError: 403, the request comes from another site or lacks the session's token."""
        assert self._sessions is not None
        token = http.headers.get(CSRF_HEADER, "")
        has_token = hmac.compare_digest(token.encode(), self._sessions.csrf_token(session).encode())
        if is_foreign(http) or (http.method not in _SAFE and not has_token):
            raise ApiError(
                f"The session is good, but the request is not the live page's own: it must come from the same origin "
                f"and have the session's token in {CSRF_HEADER}.",
                status=403,
                type="permission_error",
                code="csrf",
                should_retry=False,
            )

    def actor(self, session: Session | None) -> str:
        """How the audit calls who asks."""
        admin = f"admin:{self._fingerprint.hex()[:8]}"
        return admin if session is None else f"{admin}/session:{session.name}"

    def leave(self, http: HttpRequest, response: Response, session: Session | None) -> Response:
        """The response with the session's cookie renewed where it is due, and a stream that ends with its session."""
        if session is None or self._sessions is None:
            return response
        if (renewed := self._sessions.renewed(session)) is not None:
            self.set_cookie(http, response, renewed)
        if response.media_type == "text/event-stream":
            return _WhileOpen(response, session, self._sessions)
        return response

    def set_cookie(self, http: HttpRequest, response: Response, session: Session | None) -> None:
        """Give the browser the session; None takes it away."""
        assert self._sessions is not None
        response.set_cookie(
            self._sessions.cookie_name,
            "" if session is None else self._sessions.cookie(session),
            max_age=0 if session is None else max(0, session.ends_s - session.seen_s),
            path="/",
            secure=http.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )


def is_foreign(http: HttpRequest) -> bool:
    """Whether a browser says that another origin made it ask. What is no browser says neither."""
    site, origin = http.headers.get("sec-fetch-site"), http.headers.get("origin")
    if site is not None and site != "same-origin" and not (site == "none" and http.method in _SAFE):
        return True
    if origin == "null" and site == "same-origin":
        return False  # a form of a page that sends no referrer
    try:
        return origin is not None and urlsplit(origin).netloc != http.headers.get("host", "")
    except ValueError:  # it is no address at all
        return True


class _WhileOpen(Response):
    """A stream that ends when its session does. Events of the stream are when that is looked at."""

    def __init__(self, stream: Response, session: Session, sessions: Sessions) -> None:
        super().__init__(media_type=stream.media_type)
        self.raw_headers = stream.raw_headers
        self._stream = stream
        self._session = session
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_while_open(message: Message) -> None:
            if message["type"] == "http.response.body" and self._sessions.is_closed(self._session):
                await send({"type": "http.response.body", "body": b""})
                raise ConnectionAbortedError("the session has ended")
            await send(message)

        with contextlib.suppress(ConnectionAbortedError, ClientDisconnect):  # as which Starlette's streams tell it
            await self._stream(scope, receive, send_while_open)
