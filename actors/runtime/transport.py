"""What the runtime needs of a transport, as protocols.

`NatsTransport` is the real one; `MemoryTransport` has the same behaviour without a server, on any clock. A third would
have to promise: delivery at most once, in order per publisher and subject, callbacks on the event loop one after the
other, and a `NoRoute` notice to the reply subject when nobody listens.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, Protocol

__all__ = ("Bucket", "Delivered", "Entry", "Record", "Refused", "Subscription", "Transport", "Watch")

#: Called with (subject, reply subject or "", payload, no_route). Must neither block nor raise. `no_route` is the
#: transport's answer to a publish with a reply subject that nobody was there to read.
Delivered = Callable[[str, str, bytes, bool], None]

#: Called with the subject that the server refused to let us publish to.
Refused = Callable[[str], None]


class Entry(NamedTuple):
    """A value in a bucket. Revisions grow over the whole bucket."""

    value: bytes
    revision: int


class Subscription(Protocol):
    """Interest in a subject."""

    async def unsubscribe(self) -> None:
        """End it. Messages already received are still delivered. Harmless when repeated or without a connection."""


class Watch(Protocol):
    """A callback that follows a bucket."""

    async def close(self) -> None:
        """End it."""


class Bucket(Protocol):
    """A key-value bucket on disk. Every method raises `StoreUnavailable` when the store does not answer in time."""

    async def get(self, key: str) -> Entry | None:
        """The value and its revision; None if absent or deleted."""

    async def put(self, key: str, value: bytes) -> int:
        """Write whatever is there. Returns the new revision."""

    async def create(self, key: str, value: bytes) -> int:
        """Write if absent. Returns the revision. :raises Conflict: if present."""

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Write if the latest is `revision`. Returns the new one. :raises Conflict: if it is not."""

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete, if given only at that revision. :raises Conflict: if it is not the latest."""

    async def keys(self) -> list[str]:
        """All keys present, sorted."""

    async def watch(self, callback: Callable[[str, bytes | None], None]) -> Watch:
        """Call `callback(key, value)` for everything present, then for every change (None: deleted).

        Returns after the first round, so that the caller knows everything there was. Each state is told once; a state
        that was quickly overwritten may be skipped. Survives restarts of the server.
        """


class Record(NamedTuple):
    """An entry of a stream, to be acknowledged when what it says is safe elsewhere; else it comes again."""

    subject: str
    payload: bytes
    sequence: int
    deliveries: int
    ack: Callable[[], Awaitable[None]]


class Transport(Protocol):
    """A connection to everybody else."""

    @property
    def max_message_bytes(self) -> int:
        """The largest payload that `publish` takes."""

    @property
    def is_connected(self) -> bool:
        """Whether messages go out now."""

    async def open(self, *, role: str, instance: str) -> None:
        """Connect under this name."""

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Hand over a message. Suspends only while the outbound buffer is full.

        :raises Disconnected: if there is no connection and no room to buffer.
        """

    def publish_now(self, subject: str, payload: bytes, reply: str = "") -> bool:
        """Like `publish` if that would not suspend; False if it would, and nothing was done."""

    async def subscribe(self, subject: str, callback: Delivered, *, queue: str = "") -> Subscription:
        """Receive from a subject (`*` one token, `>` the rest); with `queue`, share it among those of the same name.

        :raises Forbidden: if permissions deny it.
        """

    async def flush(self) -> None:
        """Return when everything sent before has reached the server."""

    def on_forbidden(self, callback: Refused) -> None:
        """Call back for every publish the server refused."""

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back after every reconnection."""

    async def close(self) -> None:
        """Flush and disconnect. Never raises, takes a few seconds at most."""

    async def bucket(self, name: str) -> Bucket:
        """The bucket of that name, created if missing and permitted."""

    async def ensure_stream(
        self,
        name: str,
        subjects: list[str],
        *,
        dedup_window_s: float = 120.0,
        max_age_s: float = 0.0,
        max_bytes: int = -1,
    ) -> None:
        """Create the stream on disk if it is missing.

        `max_age_s` 0: kept for ever. When `max_bytes` (-1: what the server has) are used up, `append` fails.
        """

    async def append(self, subject: str, payload: bytes, *, message_id: str) -> bool:
        """Write to the stream that owns the subject; returns when it is stored. False: the id was there already.

        :raises StoreUnavailable: if it could not be confirmed; the same id may be tried again.
        """

    def consume(
        self, stream: str, durable: str, *, batch: int = 256, ack_wait_s: float = 30.0
    ) -> AsyncIterator[list[Record]]:
        """Batches of what the durable consumer has not acknowledged yet, for ever. Redelivers after `ack_wait_s`."""

    async def backlog(self, stream: str, durable: str) -> int:
        """How many records the durable consumer has not acknowledged yet; 0 where there is no such consumer.

        :raises StoreUnavailable: the store does not answer in time.
        """
