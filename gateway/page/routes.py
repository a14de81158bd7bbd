"""Routes of the live page: login, logout, the page, its files. The facts that it shows come from the admin API."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable
from urllib.parse import parse_qs

import msgspec
import structlog
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.errors import ApiError, BodyTooLarge
from gateway.page.assets import Assets
from gateway.page.door import AdminDoor, is_foreign
from gateway.page.sessions import Sessions
from gateway.page.throttle import LoginThrottle

__all__ = ["PAGE_HEADERS", "Page"]

#: Everything that the page may load is its own; nobody may frame it; what it says stays with it.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # none at all would take the Origin of the login form away with it
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_MAX_BODY_BYTES = 4096
#: Nobody has shown a key before the body was read, and connections are few.
_BODY_TIMEOUT_S = 10.0
_FOREVER = "public, max-age=31536000, immutable"


class _KeyGiven(msgspec.Struct):
    key: str


class Page:
    """`now` gives unix seconds."""

    def __init__(
        self,
        door: AdminDoor,
        sessions: Sessions,
        *,
        gateway: str,
        throttle: LoginThrottle | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._door = door
        self._sessions = sessions
        self._gateway = gateway
        self._throttle = throttle or LoginThrottle()
        self._now = now
        self._assets = Assets()
        self._log = structlog.get_logger()

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self._index, methods=["GET"]),
            Route("/login", self._login_page, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/session", self._session, methods=["GET"]),
            Route("/assets/{digest}/{name}", self._asset, methods=["GET"]),
        ]

    async def _index(self, http: HttpRequest) -> Response:
        if self._door.session(http) is None:
            return RedirectResponse("/login", 303, headers=PAGE_HEADERS | {"cache-control": "no-store"})
        return await self._document("index.html")

    async def _login_page(self, http: HttpRequest) -> Response:
        if self._door.session(http) is not None:
            return RedirectResponse("/", 303, headers=PAGE_HEADERS | {"cache-control": "no-store"})
        return await self._document("login.html")

    async def _login(self, http: HttpRequest) -> Response:
        """A form answers with a page, JSON with 204 or an error of the API."""
        as_json = http.headers.get("content-type", "").partition(";")[0].strip() == "application/json"
        address = http.client.host if http.client else ""
        try:
            key = await _key_given(http, as_json=as_json)
            if is_foreign(http):
                raise _denied(403, "csrf", "The login comes from another site.")
            if not self._door.is_key(key):
                # The right key never waits: the address may be a proxy's, and so everybody's.
                if (wait_s := self._throttle.wait_s(address)) > 0:
                    raise _denied(
                        429, "too_many_logins", "Too many wrong keys from this address.", retry_after_s=wait_s
                    )
                self._throttle.failed(address)
                self._log.warning("a wrong key was tried at the live page", address=address)
                raise _denied(401, "invalid_api_key", "That is not the admin key of this stack.")
        except ApiError as error:
            if as_json or error.status == 408:
                raise
            return await self._document("login.html", status=error.status, error=_told(error))
        self._throttle.succeeded(address)
        session = self._sessions.open()
        self._log.info("signed in at the live page", session=session.name, address=address)
        headers = PAGE_HEADERS | {"cache-control": "no-store"}
        response = Response(None, 204, headers) if as_json else RedirectResponse("/", 303, headers)
        self._door.set_cookie(http, response, session)
        return response

    async def _logout(self, http: HttpRequest) -> Response:
        if is_foreign(
            http
        ):  # then there is no session either, but the browser would heed that its cookie is taken away
            raise _denied(403, "csrf", "The logout comes from another site.")
        session = self._door.session(http)
        if session is not None:
            self._door.check_own(http, session)
            self._sessions.close(session)
            self._log.info("signed out of the live page", session=session.name)
        response = Response(None, 204, PAGE_HEADERS | {"cache-control": "no-store"})
        self._door.set_cookie(http, response, None)
        return response

    async def _session(self, http: HttpRequest) -> Response:
        """What the page needs to act, and to know when it has to sign in again. Asking renews the session."""
        session = self._door.session(http)
        if session is None:
            raise _denied(401, "no_session", "There is no session, or it has ended: sign in.")
        self._door.check_own(http, session)
        body = {
            "csrf": self._sessions.csrf_token(session),
            "ends_in_s": max(0, int(session.ends_s - self._now())),
            "gateway": self._gateway,
            "name": session.name,
        }
        headers = PAGE_HEADERS | {"cache-control": "no-store"}
        response = Response(msgspec.json.encode(body), 200, headers, media_type="application/json")
        return self._door.leave(http, response, session)

    async def _asset(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        asset = await self._assets.get(name)
        if asset is None or name.endswith(".html"):
            raise ApiError(f"There is no file {name[:100]!r} of the live page.", status=404, code="not_found")
        # While gateways are of two versions, a page may ask one for the files of the other: served, but not for good.
        is_current = http.path_params["digest"] == self._assets.digest
        headers = PAGE_HEADERS | {
            "cache-control": _FOREVER if is_current else "no-store",
            "vary": "accept-encoding",
        }
        if "gzip" in http.headers.get("accept-encoding", ""):
            return Response(asset.compressed, 200, headers | {"content-encoding": "gzip"}, media_type=asset.media_type)
        return Response(asset.body, 200, headers, media_type=asset.media_type)

    async def _document(self, name: str, *, status: int = 200, error: str = "") -> Response:
        asset = await self._assets.get(name)
        assert asset is not None, name
        text = asset.body.decode().replace("{assets}", f"/assets/{self._assets.digest}")
        text = text.replace("{error}", html.escape(error)).replace("{invalid}", "true" if error else "false")
        headers = PAGE_HEADERS | {"cache-control": "no-store"}
        return Response(text, status, headers, media_type="text/html")


def _denied(status: int, code: str, message: str, *, retry_after_s: float | None = None) -> ApiError:
    return ApiError(
        message,
        status=status,
        type="permission_error" if status == 403 else "invalid_request_error",
        code=code,
        should_retry=False,
        retry_after_s=retry_after_s,
        headers=tuple((name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()),
    )


def _told(error: ApiError) -> str:
    wait_s = error.retry_after_s
    return error.message if wait_s is None else f"{error.message} Try again in {wait_s:.0f} seconds."


async def _key_given(http: HttpRequest, *, as_json: bool) -> str:
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for part in http.stream():
                body += part
                if len(body) > _MAX_BODY_BYTES:
                    raise BodyTooLarge(_MAX_BODY_BYTES)
    except TimeoutError:
        late = f"The body did not arrive within {_BODY_TIMEOUT_S:g} s."
        raise ApiError(late, status=408, code="request_timeout", headers=((b"connection", b"close"),)) from None
    try:
        if as_json:
            return msgspec.json.decode(bytes(body), type=_KeyGiven).key.strip()
        return parse_qs(body.decode(), max_num_fields=10).get("key", [""])[0].strip()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _denied(400, "invalid_value", "The login needs a form or a JSON object with `key`.") from None
