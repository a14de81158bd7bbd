"""The transport over a NATS server, and everything nats-py 2.16.0 needs to be told or spared.

Each of these was reproduced against a real server, and has a test:

- A flush that is cancelled or times out kills the reading task when its pong comes: we ping ourselves.
- A message the server finds too large closes the client for good: the size is checked before.
- `publish` swallows cancellation while it waits for a full buffer: it is noticed and raised again.
- `close` raises when it meets a reconnection: it is bounded and silenced.
- Reconnection gives up after two minutes, and a half-open link takes minutes to notice: reconnect for ever, ping every
  5 s, and when no pong came for 15 s call `on_stale`, which by default ends the process for its supervisor to start.
- A forbidden publish is only reported to the error callback: the subject is passed on to who waits for the answer.
- Callbacks run one at a time per subscription, and overflow drops the newest: ours never wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

from actors.runtime import jetstream, nats_bucket
from actors.runtime.errors import Disconnected, Forbidden, MessageTooLarge

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription as NatsSubscription

    from actors.runtime.transport import Delivered, Record, Refused

__all__ = ("EXIT_STALE", "NatsTransport")

#: Exit status of a process whose connection is dead (EX_TEMPFAIL): start it again.
EXIT_STALE = 75
#: The largest message we send, whatever the server allows.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
#: So often is one and the same error of the connection logged.
_TOLD_EVERY_S = 10.0
#: Of the server's limit, kept free for headers.
_SLACK = 2
_PUBLISH_VIOLATION = re.compile(r"permissions violation for publish to \"([^\"]+)\"", re.IGNORECASE)
_SUBSCRIBE_VIOLATION = re.compile(r"permissions violation for subscription to \"([^\"]+)\"", re.IGNORECASE)


def _exit_stale() -> None:
    # Not sys.exit: cleaning up would wait for the very connection that is dead.
    os._exit(EXIT_STALE)


class NatsTransport:
    """A connection to a NATS server. Implements `Transport`.

    `url` may carry user and password, or they are given apart; several, with commas between, are the servers of a
    cluster. `pending_bytes` is how much is buffered without a connection: little, since what actors tell each other is
    stale soon. `replicas`: how many servers keep the buckets and streams that are made from here.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        pending_bytes: int = 256 * 1024,
        ping_interval_s: float = 5.0,
        stale_after_s: float = 15.0,
        on_stale: Callable[[], None] = _exit_stale,
        store_timeout_s: float = 5.0,
        replicas: int = 1,
    ) -> None:
        self.url = url
        self.replicas = replicas
        self.client = Client()
        self.store_timeout_s = store_timeout_s
        self._user = user
        self._password = password
        self._wanted_bytes = max_message_bytes
        self._pending_bytes = pending_bytes
        self._ping_interval_s = ping_interval_s
        self._stale_after_s = stale_after_s
        self._on_stale = on_stale
        self._limit_bytes = max_message_bytes
        self._forbidden: list[Refused] = []
        self._reconnected: list[Callable[[], None]] = []
        self._forbidden_subscriptions: set[str] = set()
        self._watchdog: asyncio.Task[None] | None = None
        self._refused = asyncio.Event()
        self._is_closing = False
        self._told = ("", 0.0)  # the latest error in the log, and when
        self._js: JetStreamContext | None = None
        self._log: Any = structlog.get_logger("actors.runtime")

    @property
    def max_message_bytes(self) -> int:
        return self._limit_bytes

    @property
    def is_connected(self) -> bool:
        return bool(self.client.is_connected)

    @property
    def js(self) -> JetStreamContext:
        """The JetStream context of this connection."""
        if self._js is None:
            self._js = self.client.jetstream(timeout=self.store_timeout_s)
        return self._js

    async def open(self, *, role: str, instance: str) -> None:
        """Connect, waiting for the server for as long as it takes.

        :raises Forbidden: if the server refuses the credentials.
        """
        self._log = self._log.bind(node=f"{role}.{instance}")
        connecting = asyncio.create_task(
            self.client.connect(
                self.url.split(","),
                name=f"{role}.{instance}",
                user=self._user,
                password=self._password,
                inbox_prefix=f"_R.{role}.{instance}",
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]
                ping_interval=self._ping_interval_s,  # type: ignore[arg-type]
                max_outstanding_pings=2,
                connect_timeout=2,
                drain_timeout=2,
                pending_size=self._pending_bytes,
                flush_timeout=2,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )
        )
        refused = asyncio.create_task(self._refused.wait())
        try:
            await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise Forbidden(f"the NATS server refuses the credentials of {role}.{instance}")
            await connecting
        finally:
            refused.cancel()
            connecting.cancel()
        self._limit_bytes = self._limit()
        self._watchdog = asyncio.create_task(self._watch())

    # Messages

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        if self.publish_now(subject, payload, reply):
            return
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            await self.client.publish(subject, payload, reply)
        except nats_errors.Error as error:
            raise self._unsent(error) from None
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError

    def publish_now(self, subject: str, payload: bytes, reply: str = "") -> bool:
        client, size = self.client, len(payload)
        if size > self._limit_bytes:
            raise MessageTooLarge(subject, size, self._limit_bytes)
        if client.is_connected and client.pending_data_size + size + 512 > self._pending_bytes:
            return False
        # With room in the buffer this coroutine never suspends, so that it can be run like a function.
        publishing = client.publish(subject, payload, reply)
        try:
            publishing.send(None)
        except StopIteration:
            return True
        except nats_errors.Error as error:
            raise self._unsent(error) from None
        # But for one case: its flusher has died, and the message is already written to the socket.
        publishing.close()
        return True

    def _unsent(self, error: nats_errors.Error) -> Exception:
        if isinstance(error, nats_errors.OutboundBufferLimitError):
            return Disconnected(f"no connection to NATS, and {self.client.pending_data_size} bytes wait for one")
        if isinstance(error, nats_errors.ConnectionClosedError | nats_errors.ConnectionDrainingError):
            return Disconnected("the connection to NATS is closed")
        return error

    async def subscribe(self, subject: str, callback: Delivered, *, queue: str = "") -> _Subscription:
        async def receive(message: Msg) -> None:
            headers = message.headers
            callback(
                message.subject,
                message.reply,
                message.data,
                headers is not None and headers.get("Status") == "503",
            )

        try:
            subscription = await self.client.subscribe(subject, queue=queue, cb=receive)
            if self.client.is_connected:
                await self.flush()
        except (nats_errors.ConnectionClosedError, nats_errors.ConnectionDrainingError):
            raise Disconnected("the connection to NATS is closed") from None
        if subject.lower() in self._forbidden_subscriptions:
            self._forbidden_subscriptions.discard(subject.lower())
            raise Forbidden(f"this role may not subscribe to {subject}")
        return _Subscription(subscription)

    async def flush(self) -> None:
        """:raises Disconnected: if the server does not answer in 2 s."""
        if not await self._ping(2.0):
            raise Disconnected("the NATS server does not answer")

    async def _ping(self, timeout_s: float) -> bool:
        """Whether the server answers, after everything sent before.

        Not `Client.flush`: it cancels its future when it times out or is cancelled, the pong that comes later kills the
        reading task, and the client stays connected and deaf. And its ping overtakes what is still in the buffer.
        """
        client = self.client
        if not client.is_connected:
            return False
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(OSError, AttributeError):  # without a socket, in the midst of a reconnection
            if client.pending_data_size:
                await client._flush_pending(force_flush=True)
            await client._send_ping(pong)
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        await asyncio.wait({pong}, timeout=timeout_s)
        return pong.done()

    def on_forbidden(self, callback: Refused) -> None:
        self._forbidden.append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._reconnected.append(callback)

    def off_reconnect(self, callback: Callable[[], None]) -> None:
        """Undo `on_reconnect`."""
        with contextlib.suppress(ValueError):
            self._reconnected.remove(callback)

    def off_forbidden(self, callback: Refused) -> None:
        """Undo `on_forbidden`."""
        with contextlib.suppress(ValueError):
            self._forbidden.remove(callback)

    async def close(self) -> None:
        self._is_closing = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        # In a task of its own, which the caller's cancellation does not reach.
        closing = asyncio.ensure_future(self._close())
        await asyncio.wait({closing}, timeout=4.0)
        if not closing.done():
            closing.cancel()

    async def _close(self) -> None:
        client = self.client
        with contextlib.suppress(OSError, nats_errors.Error, asyncio.TimeoutError):
            if client.is_connected and not client.is_draining:
                async with asyncio.timeout(2.0):
                    await client.drain()
        with contextlib.suppress(OSError, nats_errors.Error, asyncio.TimeoutError):
            async with asyncio.timeout(2.0):
                await client.close()

    # Stores

    async def bucket(self, name: str) -> nats_bucket.NatsBucket:
        return await nats_bucket.open_bucket(self, name)

    async def ensure_stream(
        self,
        name: str,
        subjects: list[str],
        *,
        dedup_window_s: float = 120.0,
        max_age_s: float = 0.0,
        max_bytes: int = -1,
    ) -> None:
        await jetstream.ensure_stream(
            self, name, subjects, dedup_window_s=dedup_window_s, max_age_s=max_age_s, max_bytes=max_bytes
        )

    async def replicate(self, stream: str, replicas: int) -> None:
        """Let a stream that exists be kept by so many servers, if they are fewer."""
        await jetstream.replicate(self, stream, replicas)

    async def append(self, subject: str, payload: bytes, *, message_id: str) -> bool:
        return await jetstream.append(self, subject, payload, message_id=message_id)

    def consume(
        self, stream: str, durable: str, *, batch: int = 256, ack_wait_s: float = 30.0
    ) -> AsyncIterator[list[Record]]:
        return jetstream.consume(self, stream, durable, batch=batch, ack_wait_s=ack_wait_s)

    async def backlog(self, stream: str, durable: str) -> int:
        return await jetstream.backlog(self, stream, durable)

    # What nats-py tells us

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if match := _PUBLISH_VIOLATION.search(text):
            self._log.error("publish forbidden", subject=match[1])
            for callback in list(self._forbidden):
                callback(match[1])
        elif match := _SUBSCRIBE_VIOLATION.search(text):
            self._forbidden_subscriptions.add(match[1].lower())
            self._log.error("subscription forbidden", subject=match[1])
        elif "authorization violation" in text.lower():
            self._refused.set()
        else:
            # Every failed attempt to connect comes here, five a second: the same one is told now and then.
            now_s, told = asyncio.get_running_loop().time(), repr(error)
            if told != self._told[0] or now_s - self._told[1] >= _TOLD_EVERY_S:
                self._told = (told, now_s)
                self._log.warning("nats", error=told, servers=self._servers())

    def _servers(self) -> str:
        """Where we connect to, without user and password."""
        return ",".join(urlsplit(url.strip()).netloc.rpartition("@")[2] or "?" for url in self.url.split(","))

    async def _on_disconnected(self) -> None:
        if not self._is_closing:
            self._log.warning("disconnected from NATS", host=urlsplit(self.url).hostname)

    async def _on_reconnected(self) -> None:
        self._limit_bytes = self._limit()
        self._log.info("reconnected to NATS")
        for callback in list(self._reconnected):
            callback()

    async def _on_closed(self) -> None:
        if not self._is_closing:
            self._log.error("the NATS client closed itself", error=repr(self.client.last_error))
            self._on_stale()

    def _limit(self) -> int:
        # The rest of the server's limit is for the headers of what JetStream adds; a default server leaves 512 KiB.
        return min(self._wanted_bytes, self.client.max_payload // _SLACK)

    async def _watch(self) -> None:
        """Ping on our own account: nats-py does not tell of pongs, nor give up when it hangs in mid-reconnect."""
        loop = asyncio.get_running_loop()
        last_pong_s, failures = loop.time(), 0
        interval_s = self._stale_after_s / 5
        while True:
            started_s = loop.time()
            if await self._ping(interval_s):
                last_pong_s, failures = loop.time(), 0
            else:
                failures += 1
            # Two in a row, since after a stall of this process the timer fires before the pong is read.
            if failures > 1 and loop.time() - last_pong_s >= self._stale_after_s:
                self._log.error("no pong from NATS", seconds=round(loop.time() - last_pong_s, 1))
                self._on_stale()
                return
            await asyncio.sleep(max(0.0, started_s + interval_s - loop.time()))


class _Subscription:
    """Ends without complaint whatever state the connection is in."""

    def __init__(self, subscription: NatsSubscription) -> None:
        self._subscription = subscription

    async def unsubscribe(self) -> None:
        with contextlib.suppress(nats_errors.Error, OSError):
            await self._subscription.unsubscribe()
