"""Buckets on JetStream, on file storage.

A memory bucket would vanish with the server and begin again at revision 1, and revisions are epochs. A watch of nats-py
goes dead without a word when the server is restarted: ours is made anew on every reconnection, and every few seconds
its last revision is compared with the stream's. Nor is its first round always complete: we count ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nats import errors as nats_errors
from nats.js import api
from nats.js import errors as js_errors
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from actors.runtime.errors import Disconnected, StoreUnavailable
from actors.runtime.jetstream import guarded
from actors.runtime.transport import Entry

if TYPE_CHECKING:
    from actors.runtime.nats_transport import NatsTransport

__all__ = ("BucketWatch", "NatsBucket", "open_bucket")

T = TypeVar("T")

#: How often a watch is checked against the stream.
RECONCILE_S = 2.0
_BUCKET_BYTES = 64 * 1024 * 1024


async def open_bucket(transport: NatsTransport, name: str) -> NatsBucket:
    """Bind to a bucket; create it on disk if it is missing and this role may."""
    js = transport.js
    try:
        store = await guarded(transport, name, js.key_value(name))
    except js_errors.NotFoundError:
        config = api.KeyValueConfig(
            bucket=name,
            history=1,
            storage=api.StorageType.FILE,
            max_bytes=_BUCKET_BYTES,
            direct=True,
            replicas=transport.replicas,
        )
        store = await guarded(transport, name, js.create_key_value(config))
    return NatsBucket(transport, name, store)


class NatsBucket:
    """A JetStream key-value bucket. Implements `Bucket`."""

    def __init__(self, transport: NatsTransport, name: str, store: KeyValue) -> None:
        self._transport = transport
        self._name = name
        self._store = store

    async def get(self, key: str) -> Entry | None:
        try:
            entry = await self._do(self._store.get(key))
        except js_errors.KeyNotFoundError:
            return None
        return Entry(entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes) -> int:
        return await self._do(self._store.put(key, value))

    async def create(self, key: str, value: bytes) -> int:
        return await self._do(self._store.create(key, value))

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._do(self._store.update(key, value, last=revision))

    async def delete(self, key: str, revision: int | None = None) -> None:
        await self._do(self._store.delete(key, last=revision))

    async def keys(self) -> list[str]:
        watcher, entries, _ = await self.snapshot()
        await _stop(watcher)
        latest = {entry.key: entry for entry in entries}
        return sorted(key for key, entry in latest.items() if _is_present(entry))

    async def watch(self, callback: Callable[[str, bytes | None], None]) -> BucketWatch:
        watch = BucketWatch(self, callback)
        await watch.start()
        return watch

    async def last_revision(self) -> int:
        """The revision of the latest write to any key."""
        return (await self._state())[0]

    async def snapshot(self) -> tuple[Any, list[Any], int]:
        """A new watcher of nats-py, the latest entry of every key as of now, and the revision they are complete up to.

        The marker by which a watcher ends its first round may come too early: nats-py asks what is pending when all is
        sent already, but not received yet. So we count against the state of the stream from before. Entries come in
        the order of their revisions, and of every key there is one.
        """
        last, count = await self._state()
        watcher: Any = await self._do(self._store.watchall())
        entries: list[Any] = []
        try:
            while len(entries) < count and (not entries or entries[-1].revision < last):
                entry = await self._do(watcher._updates.get())
                if isinstance(entry, KeyValue.Entry):
                    entries.append(entry)
        except BaseException:
            await _stop(watcher)
            raise
        return watcher, entries, last

    async def _state(self) -> tuple[int, int]:
        info = await self._do(self._transport.js.stream_info(f"KV_{self._name}"))
        return int(info.state.last_seq), int(info.state.messages)

    async def _do(self, operation: Awaitable[T]) -> T:
        return await guarded(self._transport, self._name, operation)


class BucketWatch:
    """Follows a bucket through reconnections, and tells each state once."""

    def __init__(self, bucket: NatsBucket, callback: Callable[[str, bytes | None], None]) -> None:
        self._bucket = bucket
        self._callback = callback
        self._revisions: dict[str, int] = {}
        self._present: set[str] = set()
        self._seen = 0
        self._stale = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._watcher: Any = None

    async def start(self) -> None:
        """Tell everything there is, then follow."""
        self._bucket._transport.on_reconnect(self._reconnected)
        try:
            self._watcher = await self._snapshot()
        except BaseException:
            self._bucket._transport.off_reconnect(self._reconnected)
            raise
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        self._bucket._transport.off_reconnect(self._reconnected)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _reconnected(self) -> None:
        self._stale.set()
        if self._watcher is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._watcher._updates.put_nowait(None)  # wakes up whoever reads

    async def _snapshot(self) -> Any:
        """Make a watcher and take in everything present, so that what was missed is told."""
        watcher, entries, last = await self._bucket.snapshot()
        for entry in entries:
            self._take(entry)
        for key in sorted(self._present - {entry.key for entry in entries}):
            # Deleted while nobody watched, and the marker is gone too; or just written anew.
            if await self._bucket.get(key) is None:
                self._tell(key, None)
        self._seen = max(self._seen, last)
        return watcher

    def _take(self, entry: Any) -> None:
        """Tell an entry if it is news."""
        is_present = _is_present(entry)
        self._seen = max(self._seen, entry.revision)
        if entry.revision > self._revisions.get(entry.key, 0):
            self._revisions[entry.key] = entry.revision
            if is_present or entry.key in self._present:
                self._tell(entry.key, (entry.value or b"") if is_present else None)

    def _tell(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._present.discard(key)
        else:
            self._present.add(key)
        try:
            self._callback(key, value)
        except Exception:
            self._bucket._transport._log.exception("a watch callback raised", bucket=self._bucket._name, key=key)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    if self._watcher is None or self._stale.is_set():
                        self._stale.clear()
                        await self._stop()
                        self._watcher = await self._snapshot()
                    await self._read(until_s=loop.time() + RECONCILE_S)
                    if not self._stale.is_set() and await self._bucket.last_revision() > self._seen:
                        # A write is older than the stream's answer, so it should be here, unless it is just under way.
                        await self._read(until_s=loop.time() + 0.1)
                        if await self._bucket.last_revision() > self._seen:
                            self._stale.set()
                except (StoreUnavailable, Disconnected, js_errors.Error, nats_errors.Error):
                    self._stale.set()
                    await asyncio.sleep(0.2)
        finally:
            await self._stop()

    async def _read(self, *, until_s: float) -> None:
        """Take in what comes until that time, or until the watch is known to be stale."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                while not self._stale.is_set():
                    entry = await self._watcher._updates.get()
                    if isinstance(entry, KeyValue.Entry):
                        self._take(entry)

    async def _stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await _stop(watcher)


def _is_present(entry: Any) -> bool:
    return bool(entry.operation not in (KV_DEL, KV_PURGE))


async def _stop(watcher: Any) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1.0):
            await watcher.stop()
