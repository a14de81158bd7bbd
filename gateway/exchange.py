"""One HTTP request and its answer: reading the body within bounds, writing with the headers that every answer has,
noticing that the client left.

A server cancels nothing by itself when a client goes away, streaming or not; `until_left` does. Writes of a stream go
through here one at a time, so that the comment lines which keep a silent stream alive never cut into an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, MutableMapping
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from actors.messages import Decision
from gateway.errors import ApiError, BadRequest, BodyTooLarge, GatewayError
from gateway.headers import ClientHints, Headers, decision_headers, hints, request_id
from gateway.hooks import Hooks, Observer
from gateway.principal import Principal
from gateway.settings import EdgeSettings

__all__ = ["ClientLeft", "Exchange", "exchange_of"]

T = TypeVar("T")

_PING = b": ping\n\n"
_JSON: Headers = [(b"content-type", b"application/json")]
_EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
# After an early answer the client is still sending: what it sends is thrown away for a while, since closing at once
# would reset the connection before it has read why.
_LINGER_S = 2.0
_LINGER_BYTES = 64 * 1024 * 1024


class ClientLeft(GatewayError):
    """Nobody is there to be answered."""


class Exchange:
    """Lives from the headers of a request to the last byte of its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, settings: EdgeSettings, hooks: Hooks) -> None:
        self.scope = scope
        self.settings = settings
        self.id = request_id()
        self.started = time.perf_counter()
        self.principal: Principal | None = None
        self.decisions: list[Decision] = []
        self.deadline_ms: float | None = None
        self.awaited_s = 0.0  # spent waiting for others: admission, tokens
        self.status = 0  # of the answer; 0 while it has not begun
        self.error: ApiError | None = None  # that the answer ended with
        self.hints: ClientHints = hints(scope["headers"])
        self.observer: Observer = hooks.start(
            f"{scope['method']} {scope['path']}", request_id=self.id, traceparent=self.header(b"traceparent")
        )
        self._receive = receive
        self._send = send
        self._left = False
        self._complete = False
        self._lock = asyncio.Lock()
        self._last_write = 0.0
        self._heartbeat: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    # --- what came ----------------------------------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        """Since the headers were there."""
        return time.perf_counter() - self.started

    def header(self, name: bytes) -> str | None:
        """A header's value; the first, if there are several."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    async def body(self) -> bytes:
        """All of the body.

        :raises BodyTooLarge: as soon as that is known; the rest is not read.
        :raises ApiError: it did not come in time, or is compressed.
        :raises ClientLeft: before its end.
        """
        limit = self.settings.max_body_bytes
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(limit)
        encoding = self.header(b"content-encoding")
        if encoding not in (None, "identity"):
            raise BadRequest(f"The body has the content-encoding `{str(encoding)[:40]}`: send it uncompressed.")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise BodyTooLarge(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                f"The body did not arrive within {self.settings.body_timeout_s:g} s.",
                status=408,
                code="request_timeout",
                headers=((b"connection", b"close"),),
            ) from None

    async def until_left(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the client goes away. The body must have been read.

        :raises ClientLeft: it did; `work` has ended by then.
        """
        self._task = asyncio.current_task()
        assert self._task is not None
        watcher = asyncio.create_task(self._watch())
        try:
            return await work
        except asyncio.CancelledError:
            if self._left:
                raise ClientLeft from None
            raise
        finally:
            watcher.cancel()
            if self._left:
                self._task.uncancel()
            self._task = None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        # The server also reports a disconnect once the answer is complete: then nobody has left.
        if self._complete or self._left or self._task is None:
            return
        self._left = True
        self._task.cancel()

    async def awaiting(self, work: Awaitable[T]) -> T:
        """Await others' work, whose time is not our overhead."""
        began = time.perf_counter()
        try:
            return await work
        finally:
            self.awaited_s += time.perf_counter() - began

    # --- what goes ----------------------------------------------------------------------------------------------------

    def _headers(self) -> Headers:
        elapsed_s = self.elapsed_s
        return [
            (b"x-request-id", self.id.encode()),
            (b"openai-processing-ms", b"%d" % (elapsed_s * 1000)),
            (b"x-headgate-overhead-ms", b"%.3f" % (max(elapsed_s - self.awaited_s, 0.0) * 1000)),
            *([(b"traceparent", self.observer.traceparent.encode())] if self.observer.traceparent else []),
            *decision_headers(self.decisions, self.deadline_ms),
        ]

    async def respond(self, body: bytes, *, status: int = 200, headers: Headers | None = None) -> None:
        """The whole answer; JSON unless `headers` give another content-type."""
        extra = headers or []
        given = extra if any(name == b"content-type" for name, _ in extra) else _JSON + extra
        await self._start(status, [*given, (b"content-length", b"%d" % len(body))])
        await self._finish(body)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, or end a stream that has begun with an error event and no `[DONE]`."""
        self.error = error
        if self._complete:
            return  # too late to tell
        if self.status:
            await self.write(b"data: " + error.body() + b"\n\n", last=True)
            return
        if error.decision is not None:
            self.decisions = [error.decision]
        body = error.body()
        headers = [*error.headers, *error.retry_headers(), (b"content-length", b"%d" % len(body))]
        await self._start(error.status, _JSON + headers)
        if isinstance(error, BodyTooLarge):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._linger()
            body = b""
        await self._finish(body)

    async def _linger(self) -> None:
        size = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while size < _LINGER_BYTES:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
        except TimeoutError:
            pass

    async def start_stream(self) -> None:
        """Commit to 200 and an event stream. From here on only `write` and `fail` may be used."""
        await self._start(200, _EVENT_STREAM)
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        self._heartbeat = loop.call_later(self.settings.ping_interval_s, self._beat)

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """One write to the socket; waits while the client reads too slowly."""
        async with self._lock:
            self._last_write = asyncio.get_running_loop().time()
            if last:
                await self._finish(events)
            else:
                await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def _start(self, status: int, headers: Headers) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": self._headers() + headers})

    async def _finish(self, body: bytes) -> None:
        self._complete = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _beat(self) -> None:
        """Every interval: a comment line where nothing was written, an end to readers that take nothing."""
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - self._last_write
        wait_s = self.settings.ping_interval_s - silent_s
        if self._lock.locked():
            wait_s = self.settings.write_timeout_s - silent_s
            if wait_s <= 0.0:
                self._leave()
                return
        elif silent_s >= self.settings.ping_interval_s:
            self._ping = asyncio.create_task(self.write(_PING))
            wait_s = self.settings.ping_interval_s
        self._heartbeat = loop.call_later(max(wait_s, 0.05), self._beat)

    async def close(self) -> None:
        """Nothing of it goes on after this. Idempotent."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._ping is not None:
            self._ping.cancel()
            await asyncio.gather(self._ping, return_exceptions=True)


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange:
    """The exchange that the edge put into the scope of this request."""
    exchange = scope["headgate.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange
