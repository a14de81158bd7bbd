"""Buckets and streams on JetStream, on file storage: what must not be lost.

A memory bucket would vanish with the server and begin again at revision 1, and revisions are epochs. A watch of nats-py
goes dead without a word when the server is restarted: ours is made anew on every reconnection, and every few seconds
its last revision is compared with the stream's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from nats import errors as nats_errors
from nats.js import api
from nats.js import errors as js_errors
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from actors.runtime.errors import Conflict, Disconnected, Forbidden, StoreUnavailable
from actors.runtime.transport import Entry, Record

if TYPE_CHECKING:
    from actors.runtime.nats_transport import NatsTransport

__all__ = ("NatsBucket", "append", "consume", "ensure_stream", "open_bucket")

T = TypeVar("T")

#: How often a watch is checked against the stream.
RECONCILE_S = 2.0
#: JetStream's error codes for "wrong last sequence".
_WRONG_REVISION = (10071, 10164)
_BUCKET_BYTES = 64 * 1024 * 1024


async def _guarded(transport: NatsTransport, name: str, operation: Awaitable[T]) -> T:
    """Await a JetStream operation on `name`; whatever keeps it from an answer is `StoreUnavailable`.

    A forbidden request would only time out: the server's complaint about a subject that names it ends the wait.
    """
    task = asyncio.ensure_future(operation)
    refused: list[str] = []

    def forbidden(subject: str) -> None:
        if name.lower() in subject.lower():
            refused.append(subject)
            task.cancel()

    transport.on_forbidden(forbidden)
    try:
        async with asyncio.timeout(transport.store_timeout_s):
            return await task
    except asyncio.CancelledError:
        if refused:
            raise Forbidden(f"this role may not use {refused[0]}") from None
        raise
    except (TimeoutError, nats_errors.TimeoutError, nats_errors.NoRespondersError, js_errors.ServiceUnavailableError):
        raise StoreUnavailable(f"JetStream did not answer for {name!r} in {transport.store_timeout_s} s") from None
    except (nats_errors.ConnectionClosedError, nats_errors.OutboundBufferLimitError, OSError) as error:
        raise StoreUnavailable(f"no connection to JetStream for {name!r}: {error!r}") from None
    except (js_errors.NotFoundError, js_errors.KeyNotFoundError, js_errors.NoKeysError):
        raise
    except js_errors.APIError as error:
        if isinstance(error, js_errors.KeyWrongLastSequenceError) or error.err_code in _WRONG_REVISION:
            raise Conflict(f"{name}: {error.description}") from None
        raise StoreUnavailable(f"JetStream refused for {name!r}: {error.description}") from error
    finally:
        transport.off_forbidden(forbidden)


async def open_bucket(transport: NatsTransport, name: str) -> NatsBucket:
    """Bind to a bucket; create it on disk if it is missing and this role may."""
    js = transport.js
    try:
        store = await _guarded(transport, name, js.key_value(name))
    except js_errors.NotFoundError:
        config = api.KeyValueConfig(
            bucket=name, history=1, storage=api.StorageType.FILE, max_bytes=_BUCKET_BYTES, direct=True
        )
        store = await _guarded(transport, name, js.create_key_value(config))
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
        try:
            return sorted(await self._do(self._store.keys()))
        except js_errors.NoKeysError:
            return []

    async def watch(self, callback: Callable[[str, bytes | None], None]) -> BucketWatch:
        watch = BucketWatch(self, callback)
        await watch.start()
        return watch

    async def last_revision(self) -> int:
        """The revision of the latest write to any key."""
        info = await self._do(self._transport.js.stream_info(f"KV_{self._name}"))
        return int(info.state.last_seq)

    async def _do(self, operation: Awaitable[T]) -> T:
        return await _guarded(self._transport, self._name, operation)


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
        # Read before the snapshot: whatever is written in between, the snapshot has it too.
        last = await self._bucket.last_revision()
        watcher: Any = await self._bucket._do(self._bucket._store.watchall())
        present: set[str] = set()
        while True:
            entry = await self._bucket._do(watcher._updates.get())
            if entry is None:
                break
            if self._take(entry):
                present.add(entry.key)
        for key in sorted(self._present - present):
            # Deleted while nobody watched, and the marker is gone too.
            self._tell(key, None)
        self._seen = max(self._seen, last)
        return watcher

    def _take(self, entry: Any) -> bool:
        """Tell an entry if it is news; returns whether the key is present."""
        is_present = entry.operation not in (KV_DEL, KV_PURGE)
        self._seen = max(self._seen, entry.revision)
        if entry.revision > self._revisions.get(entry.key, 0):
            self._revisions[entry.key] = entry.revision
            if is_present or entry.key in self._present:
                self._tell(entry.key, (entry.value or b"") if is_present else None)
        return is_present

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
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await watcher.stop()


async def ensure_stream(
    transport: NatsTransport, name: str, subjects: list[str], *, dedup_window_s: float, max_age_s: float, max_bytes: int
) -> None:
    """Create a stream on file storage if it is missing and this role may."""
    js = transport.js
    try:
        await _guarded(transport, name, js.stream_info(name))
    except js_errors.NotFoundError:
        config = api.StreamConfig(
            name=name,
            subjects=subjects,
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            duplicate_window=dedup_window_s,
            max_age=max_age_s,
            max_bytes=max_bytes,
        )
        await _guarded(transport, name, js.add_stream(config))


async def append(transport: NatsTransport, subject: str, payload: bytes, *, message_id: str) -> bool:
    """See `Transport.append`."""
    try:
        ack = await _guarded(
            transport, subject, transport.js.publish(subject, payload, headers={"Nats-Msg-Id": message_id})
        )
    except js_errors.NotFoundError as error:
        raise StoreUnavailable(f"no stream takes {subject!r}: {error}") from None
    return not ack.duplicate


async def consume(
    transport: NatsTransport, stream: str, durable: str, *, batch: int, ack_wait_s: float
) -> AsyncIterator[list[Record]]:
    """See `Transport.consume`."""
    js = transport.js
    config = api.ConsumerConfig(
        durable_name=durable, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=ack_wait_s, max_ack_pending=4 * batch
    )
    while True:
        try:
            try:
                await _guarded(transport, stream, js.consumer_info(stream, durable))
            except js_errors.NotFoundError:
                await _guarded(transport, stream, js.add_consumer(stream, config))
            pull = await _guarded(transport, stream, js.pull_subscribe_bind(consumer=durable, stream=stream))
            break
        except StoreUnavailable as error:
            transport._log.warning("stream not ready", stream=stream, error=str(error))
            await asyncio.sleep(0.5)
    try:
        while True:
            try:
                messages = await pull.fetch(batch, timeout=2.0)
            except (nats_errors.TimeoutError, TimeoutError):
                continue
            except (js_errors.Error, nats_errors.Error, OSError) as error:
                transport._log.warning("fetch failed", stream=stream, error=repr(error))
                await asyncio.sleep(0.5)
                continue
            yield [_record(transport, message) for message in messages]
    finally:
        with contextlib.suppress(nats_errors.Error, OSError):
            await pull.unsubscribe()


def _record(transport: NatsTransport, message: Any) -> Record:
    async def ack() -> None:
        await _guarded(transport, message.subject, message.ack())

    metadata = message.metadata
    return Record(message.subject, message.data, metadata.sequence.stream, metadata.num_delivered or 1, ack)
