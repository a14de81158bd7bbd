"""Buckets and streams in memory, with the interface and the semantics that the runtime relies on in JetStream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from actors.runtime.errors import Conflict
from actors.runtime.transport import Entry, Record

__all__ = ("MemoryBucket", "MemoryStream")


class _Watching:
    def __init__(self, bucket: MemoryBucket, callback: Callable[[str, bytes | None], None]) -> None:
        self._bucket = bucket
        self._callback = callback
        self._news: deque[tuple[str, bytes | None]] = deque()

    def notify(self, key: str, value: bytes | None) -> None:
        # A queue, so that the order of changes does not depend on the order in which the loop runs what is ready.
        self._news.append((key, value))
        asyncio.get_running_loop().call_soon(lambda: self._callback(*self._news.popleft()))

    async def close(self) -> None:
        if self in self._bucket.watches:
            self._bucket.watches.remove(self)


class MemoryBucket:
    """Implements `Bucket`. Revisions count over the whole bucket, deletions included, as in JetStream."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._latest: dict[str, int] = {}
        self._revision = 0
        self.watches: list[_Watching] = []

    async def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    async def put(self, key: str, value: bytes) -> int:
        return self._write(key, value)

    async def create(self, key: str, value: bytes) -> int:
        if key in self._entries:
            raise Conflict(f"{key!r} exists at revision {self._latest[key]}")
        return self._write(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._expect(key, revision)
        return self._write(key, value)

    async def delete(self, key: str, revision: int | None = None) -> None:
        if revision is not None:
            self._expect(key, revision)
        self._write(key, None)

    async def keys(self) -> list[str]:
        return sorted(self._entries)

    async def watch(self, callback: Callable[[str, bytes | None], None]) -> _Watching:
        for key, entry in sorted(self._entries.items()):
            callback(key, entry.value)
        watching = _Watching(self, callback)
        self.watches.append(watching)
        return watching

    def _expect(self, key: str, revision: int) -> None:
        if self._latest.get(key, 0) != revision:
            raise Conflict(f"{key!r} is at revision {self._latest.get(key, 0)}, not {revision}")

    def _write(self, key: str, value: bytes | None) -> int:
        self._revision += 1
        self._latest[key] = self._revision
        if value is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = Entry(value, self._revision)
        for watching in self.watches:
            watching.notify(key, value)
        return self._revision


class MemoryStream:
    """A stream with consumers that redeliver what is not acknowledged in time. Message ids are remembered for ever."""

    def __init__(self, subjects: list[str]) -> None:
        self.subjects = subjects
        self._records: list[tuple[str, bytes]] = []
        self._ids: set[str] = set()
        self._grown = asyncio.Event()
        #: By durable name: for each unacknowledged index, when it may be delivered again, and how often it was.
        self._pending: dict[str, dict[int, tuple[float, int]]] = {}
        self._next: dict[str, int] = {}

    def backlog(self, durable: str) -> int:
        """See `Transport.backlog`."""
        return len(self._records) - self._next.get(durable, 0) + len(self._pending.get(durable, ()))

    def append(self, subject: str, payload: bytes, message_id: str) -> bool:
        """Store a record; False if the id was there."""
        if message_id in self._ids:
            return False
        self._ids.add(message_id)
        self._records.append((subject, payload))
        self._grown.set()
        return True

    async def consume(self, durable: str, *, batch: int, ack_wait_s: float) -> AsyncIterator[list[Record]]:
        """See `Transport.consume`."""
        loop = asyncio.get_running_loop()
        pending = self._pending.setdefault(durable, {})
        while True:
            now_s = loop.time()
            due = [index for index, (again_s, _) in sorted(pending.items()) if again_s <= now_s]
            fresh = range(self._next.get(durable, 0), len(self._records))
            taken = [*due, *fresh][:batch]
            if not taken:
                self._grown.clear()
                wait_s = min((again_s - now_s for again_s, _ in pending.values()), default=None)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._grown.wait()
                except TimeoutError:
                    pass
                continue
            self._next[durable] = max(self._next.get(durable, 0), taken[-1] + 1, *(index + 1 for index in taken))
            records = []
            for index in taken:
                deliveries = pending.get(index, (0.0, 0))[1] + 1
                pending[index] = (now_s + ack_wait_s, deliveries)
                records.append(self._record(pending, index, deliveries))
            yield records

    def _record(self, pending: dict[int, tuple[float, int]], index: int, deliveries: int) -> Record:
        async def ack() -> None:
            pending.pop(index, None)

        subject, payload = self._records[index]
        return Record(subject, payload, index + 1, deliveries, ack)
