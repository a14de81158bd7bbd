"""Operations on JetStream, and streams on file storage: what must not be lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from nats import errors as nats_errors
from nats.js import api
from nats.js import errors as js_errors

from actors.runtime.errors import Conflict, Forbidden, StoreUnavailable
from actors.runtime.transport import Record

if TYPE_CHECKING:
    from actors.runtime.nats_transport import NatsTransport

__all__ = ("append", "consume", "ensure_stream", "guarded", "replicate")

T = TypeVar("T")

#: JetStream's error codes for "wrong last sequence".
_WRONG_REVISION = (10071, 10164)
#: A consumer asks anew for a first record after so long, and for those right behind it for so long.
_WAIT_S = 2.0
_LINGER_S = 0.01


async def guarded(transport: NatsTransport, name: str, operation: Awaitable[T]) -> T:
    """Await a JetStream operation on `name`; whatever keeps it from an answer is `StoreUnavailable`.

    A forbidden request would only time out: the server's complaint about a subject that names it ends the wait.

    nats-py waits with `asyncio.wait_for`, which forgets that it was cancelled when the answer comes at the same moment
    (Python 3.11). A client that left just then would be served to the end; so the caller's cancellation is raised here.
    """
    caller = asyncio.current_task()
    cancelled_before = caller.cancelling() if caller is not None else 0
    task = asyncio.ensure_future(operation)
    refused: list[str] = []

    def forbidden(subject: str) -> None:
        if name.lower() in subject.lower():
            refused.append(subject)
            task.cancel()

    transport.on_forbidden(forbidden)
    try:
        async with asyncio.timeout(transport.store_timeout_s):
            result = await task
        if caller is not None and caller.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        return result
    except asyncio.CancelledError:
        if refused:
            raise Forbidden(f"this role may not use {refused[0]}") from None
        raise
    except (
        TimeoutError,
        nats_errors.TimeoutError,
        nats_errors.NoRespondersError,
        js_errors.NoStreamResponseError,  # no server leads the stream: a cluster elects one
        js_errors.ServiceUnavailableError,
    ):
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


async def ensure_stream(
    transport: NatsTransport, name: str, subjects: list[str], *, dedup_window_s: float, max_age_s: float, max_bytes: int
) -> None:
    """Create a stream on file storage if it is missing and this role may."""
    js = transport.js
    try:
        await guarded(transport, name, js.stream_info(name))
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
            num_replicas=transport.replicas,
        )
        await guarded(transport, name, js.add_stream(config))


async def replicate(transport: NatsTransport, name: str, replicas: int) -> None:
    """See `NatsTransport.replicate`."""
    js = transport.js
    config = (await guarded(transport, name, js.stream_info(name))).config
    if (config.num_replicas or 1) < replicas:
        config.num_replicas = replicas
        await guarded(transport, name, js.update_stream(config))


async def append(transport: NatsTransport, subject: str, payload: bytes, *, message_id: str) -> bool:
    """See `Transport.append`."""
    try:
        ack = await guarded(
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
                await guarded(transport, stream, js.consumer_info(stream, durable))
            except js_errors.NotFoundError:
                await guarded(transport, stream, js.add_consumer(stream, config))
            pull = await guarded(transport, stream, js.pull_subscribe_bind(consumer=durable, stream=stream))
            break
        except StoreUnavailable as error:
            transport._log.warning("stream not ready", stream=stream, error=str(error))
            await asyncio.sleep(0.5)
    try:
        while True:
            try:
                # Waiting for a whole batch would hold the first record back until the wait is over.
                messages = await pull.fetch(1, timeout=_WAIT_S)
                with contextlib.suppress(nats_errors.TimeoutError, TimeoutError):
                    messages += await pull.fetch(batch - 1, timeout=_LINGER_S)
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


async def backlog(transport: NatsTransport, stream: str, durable: str) -> int:
    """See `Transport.backlog`."""
    try:
        consumer = await guarded(transport, stream, transport.js.consumer_info(stream, durable))
    except js_errors.NotFoundError:
        return 0
    return (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)


def _record(transport: NatsTransport, message: Any) -> Record:
    async def ack() -> None:
        await guarded(transport, message.subject, message.ack())

    metadata = message.metadata
    return Record(message.subject, message.data, metadata.sequence.stream, metadata.num_delivered or 1, ack)
