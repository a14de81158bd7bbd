"""Between the server and the routes: the one place where a request begins to be counted and errors become answers."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from gateway.errors import ApiError, Overloaded, Unauthorized
from gateway.exchange import ClientLeft, Exchange
from gateway.hooks import Hooks, NoHooks
from gateway.settings import EdgeSettings
from observability.traceparent import log_ids

__all__ = ["CHAT", "COMPLETIONS", "Boundary", "no_route"]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_GENERATE = frozenset((CHAT, COMPLETIONS))


async def no_route(request: HttpRequest, error: Exception) -> Any:
    """Handler of the router's own errors: raises them as ApiError, for `Boundary` to answer."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:20], request.url.path[:200]
    headers = tuple((name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items())
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        raise ApiError(
            f"{method} is not allowed for {path}: use {allowed}.",
            status=405,
            code="method_not_allowed",
            headers=headers,
        )
    raise ApiError(
        f"There is no {method} {path}: GET /openapi.json lists what there is.",
        status=error.status_code,
        code="not_found",
        headers=headers,
    )


class Boundary:
    """Between the server and the routes: makes the exchange, bounds how many there are, turns errors into answers."""

    def __init__(self, app: ASGIApp, *, settings: EdgeSettings, hooks: Hooks) -> None:
        self._app = app
        self._settings = settings
        self._hooks = hooks
        self._unobserved = NoHooks()  # probes and scrapes are nobody's requests
        self._under_way = 0
        self._log = structlog.get_logger("gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        generates = scope["method"] == "POST" and scope["path"] in _GENERATE
        hooks = self._hooks if generates else self._unobserved
        exchange = Exchange(scope, receive, send, settings=self._settings, hooks=hooks)
        scope["headgate.exchange"] = exchange
        # The server gives every request a task of its own, so that this ends with it.
        bind_contextvars(request_id=exchange.id, **log_ids(exchange.observer.traceparent))
        outcome = "error"
        self._under_way += generates
        try:
            outcome = await self._answer(exchange, receive, send, full=generates and self._is_full())
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._under_way -= generates
            await exchange.close()
            exchange.observer.finished(status=exchange.status, outcome=outcome, seconds=exchange.elapsed_s)

    def _is_full(self) -> bool:
        """Probes and scrapes are always answered: a full gateway is alive, and whoever looks must see it."""
        return self._under_way > self._settings.max_requests

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send, *, full: bool) -> str:
        try:
            if full:
                raise Overloaded(
                    f"{self._settings.max_requests} requests are under way, the most that this gateway serves."
                )
            count, limit = len(exchange.scope["headers"]), self._settings.max_headers
            if count > limit:
                raise ApiError(
                    f"The request has {count} headers: at most {limit} are taken.", status=431, code="too_many_headers"
                )
            await self._app(exchange.scope, receive, send)
        except ClientLeft:
            return "cancelled"
        except ApiError as error:
            await exchange.fail(error)
        except Exception as error:  # a defect: the client gets the id to report, the log gets the rest
            self._log.exception("request failed", request_id=exchange.id, error=type(error).__name__)
            await exchange.fail(
                ApiError(
                    f"An internal error occurred; it is logged under {exchange.id}.",
                    status=500,
                    type="server_error",
                    code="internal_error",
                )
            )
        return _outcome(exchange.error)


def _outcome(error: ApiError | None) -> str:
    if error is None:
        return "ok"
    if error.decision is not None:
        return "refused"
    if isinstance(error, Unauthorized):
        return "unauthorized"
    if isinstance(error, Overloaded):
        return "refused"
    return "invalid" if error.status < 500 else "error"
