"""Sending without waiting, from callbacks and plain functions.

While the transport's buffer has room a message is handed over at once. Else it joins a bounded backlog that one task
works off, and everything after it does too, so that order is kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.runtime.errors import Disconnected

if TYPE_CHECKING:
    from actors.runtime.node import Node

__all__ = ("Outbox",)

#: At most so many messages wait, and no more once they have so many bytes.
MAX_BACKLOG = 1024
MAX_BACKLOG_BYTES = 16 * 1024 * 1024


class Outbox:
    """What one node sends. `on_unsent(subject, reason)` is called for every message that is dropped."""

    def __init__(self, node: Node, *, on_unsent: Callable[[str, str], None]) -> None:
        self._node = node
        self._on_unsent = on_unsent
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._backlog_bytes = 0
        self._sender: asyncio.Task[None] | None = None

    def post(self, subject: str, payload: bytes) -> None:
        """Publish, now or soon. Dropped without a connection and a full buffer, or with a full backlog."""
        try:
            if not self._backlog and self._node.transport.publish_now(subject, payload):
                return
        except Disconnected as error:
            self._on_unsent(subject, str(error))
            return
        if len(self._backlog) >= MAX_BACKLOG or self._backlog_bytes >= MAX_BACKLOG_BYTES:
            self._on_unsent(subject, f"{len(self._backlog)} messages wait already, of {self._backlog_bytes} bytes")
            return
        self._backlog.append((subject, payload))
        self._backlog_bytes += len(payload)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def publish(self, subject: str, payload: bytes) -> None:
        """The same for callers that can wait for room."""
        if self._backlog:
            self.post(subject, payload)
            return
        try:
            await self._node.transport.publish(subject, payload)
        except Disconnected as error:
            self._on_unsent(subject, str(error))

    async def close(self, timeout_s: float) -> None:
        """Give the backlog this long to go out."""
        if self._sender is not None:
            await asyncio.wait({self._sender}, timeout=timeout_s)

    async def _send(self) -> None:
        while self._backlog:
            subject, payload = self._backlog[0]
            try:
                await self._node.transport.publish(subject, payload)
            except Disconnected as error:
                self._on_unsent(subject, str(error))
            finally:
                self._backlog.popleft()
                self._backlog_bytes -= len(payload)
        self._sender = None
