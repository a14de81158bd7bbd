"""The caller's half of an ask and of a streaming reply: what waits under a reply subject."""

from __future__ import annotations

import asyncio
from collections import deque

from actors.runtime.errors import ActorError, Gap
from actors.runtime.message import Envelope

__all__ = ("PendingAsk", "PendingStream")


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

    __slots__ = ("_error", "_loop", "_queue", "_waiter", "_window", "subject")

    def __init__(self, subject: str, loop: asyncio.AbstractEventLoop, *, window: int) -> None:
        self.subject = subject
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
        """The next envelope in order of arrival; None if none came in time. :raises ActorError: what it failed with."""
        if not self._queue and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                return None
            finally:
                self._waiter = None
        if self._queue:
            return self._queue.popleft()
        assert self._error is not None
        raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
