"""A transport without a server, on any clock, with seeded delay, loss, repetition and partition: for tests.

It behaves as NATS does where actors can tell: order holds per sender and receiver, a queue group gets each message
once, a call that nobody can take is answered `no_route`, everything else is lost without a word. Buckets and streams
stand in for JetStream; they belong to the broker and survive their clients.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from actors.runtime.errors import Disconnected, MessageTooLarge
from actors.runtime.memory_store import MemoryBucket, MemoryStream

if TYPE_CHECKING:
    from actors.runtime.transport import Delivered, Record, Refused

__all__ = ("MemoryBroker", "MemoryTransport")


class _Interest:
    """One subscription."""

    def __init__(self, owner: MemoryTransport, subject: str, queue: str, callback: Delivered) -> None:
        self.owner = owner
        self.subject = subject
        self.queue = queue
        self.callback = callback

    async def unsubscribe(self) -> None:
        self.owner.broker.interests.discard(self)


class MemoryBroker:
    """The network between memory transports of one event loop.

    `delay_s` is drawn evenly from the range for each message; `drop` and `duplicate` are probabilities. The same seed
    on the same loop gives the same run.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        delay_s: tuple[float, float] = (0.0001, 0.0005),
        drop: float = 0.0,
        duplicate: float = 0.0,
    ) -> None:
        self._random = random.Random(seed)
        self._clients = 0
        self._islands: list[set[str]] = []
        self._links: dict[tuple[str, str], deque[tuple[Callable[[], None], float]]] = {}
        self.delay_s = delay_s
        self.drop = drop
        self.duplicate = duplicate
        self.interests: set[_Interest] = set()
        self.buckets: dict[str, MemoryBucket] = {}
        self.streams: dict[str, MemoryStream] = {}

    def next_number(self) -> int:
        """A number for a new client."""
        self._clients += 1
        return self._clients

    def partition(self, *islands: set[str]) -> None:
        """Let nothing pass between these sets of node names (`role.instance`); whoever is in none reaches everybody."""
        self._islands = [set(island) for island in islands]

    def heal(self) -> None:
        """Undo `partition`."""
        self._islands = []

    def reaches(self, sender: str, receiver: str) -> bool:
        """Whether messages pass between two names."""
        here = next((island for island in self._islands if sender in island), None)
        there = next((island for island in self._islands if receiver in island), None)
        return here is there or here is None or there is None

    def send(self, sender: str, subject: str, payload: bytes, reply: str) -> None:
        """Route a message."""
        takers = self._takers(subject)
        if not takers and reply:
            for taker in self._takers(reply):
                self._deliver(sender, taker, reply, b"", "", no_route=True)
        for taker in takers:
            if not self.reaches(sender, taker.owner.name) or self._random.random() < self.drop:
                continue
            for _ in range(2 if self._random.random() < self.duplicate else 1):
                self._deliver(sender, taker, subject, payload, reply, no_route=False)

    def _takers(self, subject: str) -> list[_Interest]:
        # Sorted, since the order of a set depends on addresses in memory.
        matching = [interest for interest in self.interests if _matches(interest.subject, subject)]
        matching.sort(key=lambda interest: (interest.owner.name, interest.owner.number, interest.subject))
        takers = [interest for interest in matching if not interest.queue]
        groups: dict[str, list[_Interest]] = {}
        for interest in matching:
            if interest.queue:
                groups.setdefault(interest.queue, []).append(interest)
        return takers + [self._random.choice(members) for _, members in sorted(groups.items())]

    def _deliver(
        self, sender: str, taker: _Interest, subject: str, payload: bytes, reply: str, *, no_route: bool
    ) -> None:
        def arrive() -> None:
            if taker in self.interests and not taker.owner.is_closed:
                taker.callback(subject, reply, payload, no_route)

        loop = asyncio.get_running_loop()
        link = self._links.setdefault((sender, taker.owner.name), deque())
        due = loop.time() + self._random.uniform(*self.delay_s)
        due = max(due, link[-1][1]) if link else due
        link.append((arrive, due))
        # Each timer takes the oldest message, whatever order equal timers fire in: a link never reorders.
        loop.call_at(due, lambda: link.popleft()[0]())


class MemoryTransport:
    """One client of a `MemoryBroker`. Implements `Transport`."""

    def __init__(self, broker: MemoryBroker, *, max_message_bytes: int = 4 * 1024 * 1024) -> None:
        self.broker = broker
        self.name = ""
        self.number = 0
        self.is_closed = False
        self._max_message_bytes = max_message_bytes
        self._reconnected: list[Callable[[], None]] = []

    @property
    def max_message_bytes(self) -> int:
        return self._max_message_bytes

    @property
    def is_connected(self) -> bool:
        return not self.is_closed

    async def open(self, *, role: str, instance: str) -> None:
        self.name = f"{role}.{instance}"
        self.number = self.broker.next_number()

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.publish_now(subject, payload, reply)

    def publish_now(self, subject: str, payload: bytes, reply: str = "") -> bool:
        if self.is_closed:
            raise Disconnected(f"{self.name} is closed")
        if len(payload) > self._max_message_bytes:
            raise MessageTooLarge(subject, len(payload), self._max_message_bytes)
        self.broker.send(self.name, subject, payload, reply)
        return True

    async def subscribe(self, subject: str, callback: Delivered, *, queue: str = "") -> _Interest:
        interest = _Interest(self, subject, queue, callback)
        self.broker.interests.add(interest)
        return interest

    async def flush(self) -> None:
        await asyncio.sleep(0)

    def on_forbidden(self, callback: Refused) -> None:
        """Never called: everything is permitted here."""

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._reconnected.append(callback)

    async def close(self) -> None:
        self.is_closed = True
        self.broker.interests = {interest for interest in self.broker.interests if interest.owner is not self}

    async def bucket(self, name: str) -> MemoryBucket:
        return self.broker.buckets.setdefault(name, MemoryBucket())

    async def ensure_stream(
        self,
        name: str,
        subjects: list[str],
        *,
        dedup_window_s: float = 120.0,
        max_age_s: float = 0.0,
        max_bytes: int = -1,
    ) -> None:
        self.broker.streams.setdefault(name, MemoryStream(subjects))

    async def append(self, subject: str, payload: bytes, *, message_id: str) -> bool:
        for stream in self.broker.streams.values():
            if any(_matches(pattern, subject) for pattern in stream.subjects):
                return stream.append(subject, payload, message_id)
        raise LookupError(f"no stream takes {subject!r}: call ensure_stream first")

    def consume(
        self, stream: str, durable: str, *, batch: int = 256, ack_wait_s: float = 30.0
    ) -> AsyncIterator[list[Record]]:
        return self.broker.streams[stream].consume(durable, batch=batch, ack_wait_s=ack_wait_s)

    async def backlog(self, stream: str, durable: str) -> int:
        return self.broker.streams[stream].backlog(durable)


def _matches(pattern: str, subject: str) -> bool:
    if pattern == subject:
        return True
    if "*" not in pattern and ">" not in pattern:
        return False
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and all(w in ("*", g) for w, g in zip(wanted[:-1], given, strict=False))
    return len(wanted) == len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=True))
