"""The caller's half of an ask and of a streaming reply: what waits under a reply subject."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from actors.runtime.errors import ActorError, Failed, Gap
from actors.runtime.message import Envelope, Failure, Kind

__all__ = ("PendingAsk", "PendingStream")

_failures = msgspec.msgpack.Decoder(Failure)


class PendingAsk:
    """Waits for one envelope."""

    __slots__ = ("_future", "subject")

    def __init__(self, subject: str, loop: asyncio.AbstractEventLoop) -> None:
        self.subject = subject
        self._future: asyncio.Future[Envelope] = loop.create_future()

    def deliver(self, envelope: Envelope) -> None:
        """The reply is here; a second one is ignored."""
        if not self._future.done():
            self._future.set_result(envelope)

    def fail(self, error: ActorError) -> None:
        """There will be no reply."""
        if not self._future.done():
            self._future.set_exception(error)

    async def result(self) -> Envelope:
        """The reply. :raises ActorError: what it failed with."""
        return await self._future


class PendingStream:
    """Waits for many envelopes; at most `window` are unread, since the producer needs credit for each."""

    __slots__ = ("_error", "_loop", "_queue", "_waiter", "_window", "granted", "is_open", "read", "subject")

    def __init__(self, subject: str, loop: asyncio.AbstractEventLoop, *, window: int) -> None:
        self.subject = subject
        #: Items handed to the reader.
        self.read = 0
        #: Items the producer may send in all.
        self.granted = window
        #: Whether the producer may still be at work.
        self.is_open = True
        self._loop = loop
        self._window = window
        self._queue: deque[Envelope] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: ActorError | None = None

    def deliver(self, envelope: Envelope) -> None:
        """An item, the end or an error is here."""
        if len(self._queue) > self._window:  # one more than the window, for the end
            self.fail(Gap(envelope.meta.index, None))
            return
        self._queue.append(envelope)
        self._wake()

    def fail(self, error: ActorError) -> None:
        """There will be no more."""
        self._error = self._error or error
        self._wake()

    async def next(self, *, timeout_s: float) -> Envelope | None:
        """The next item; None at the end.

        :raises TimeoutError: nothing came in time.
        :raises ActorError: an item was lost, or what the stream failed with.
        """
        while True:
            envelope = await self._arrival(timeout_s)
            kind, index = envelope.meta.kind, envelope.meta.index
            if kind == Kind.END:
                self.is_open = False
                if index != self.read:
                    raise Gap(self.read + 1, None)
                return None
            if kind == Kind.ERROR:
                self.is_open = False
                error = _failures.decode(envelope.body).error()
                # Our credit found no producer any more: it has ended, and the end was lost.
                was_over = isinstance(error, Failed) and error.reason == "unknown-stream"
                raise Gap(self.read + 1, None) if was_over else error
            if index <= self.read:
                continue  # a repetition
            if index != self.read + 1:
                raise Gap(self.read + 1, index)
            self.read = index
            return envelope

    def renew_credit(self) -> bool:
        """Grant another window once half of it is read; returns whether the producer is to be told."""
        if self.granted - self.read > self._window // 2:
            return False
        self.granted = self.read + self._window
        return True

    async def _arrival(self, timeout_s: float) -> Envelope:
        if not self._queue and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            finally:
                self._waiter = None
        if self._queue:
            return self._queue.popleft()
        assert self._error is not None
        raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
