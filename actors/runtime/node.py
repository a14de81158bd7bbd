"""A node: one named connection, from which actors are served and others are asked, told and published to.

Addresses are `role.instance`; `any` as the instance is whichever of that role takes it. Subjects:

    hg.v1.<role>.<instance>     messages to one instance
    hg.v1.<role>.any            the role's queue group
    hg.v1.<role>.all            every instance; the runtime's own, to cancel what was asked of `any`
    hg.v1.bus.<topic>           heartbeats and control, to whoever listens
    _R.<role>.<instance>.ask.<id>   replies
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec
import structlog
from opentelemetry.trace import Tracer

from actors.runtime.actor import Actor, Context, current_context
from actors.runtime.bus import Bus
from actors.runtime.calls import PendingAsk, PendingStream
from actors.runtime.errors import (
    ActorError,
    DeadlineExceeded,
    Disconnected,
    Failed,
    Forbidden,
    NoRoute,
)
from actors.runtime.fencing import Fences
from actors.runtime.host import ActorHost
from actors.runtime.message import Envelope, Failure, Kind, Message, Meta, decode_envelope, pack
from actors.runtime.outbox import Outbox
from actors.runtime.tracing import inject
from actors.runtime.transport import Delivered, Subscription, Transport

if TYPE_CHECKING:
    from actors.runtime.lease import Lease

__all__ = ("DEFAULT_TIMEOUT_S", "Node")

M = TypeVar("M", bound=Message)

#: Of an ask that names no timeout and is not made while handling a message that has one.
DEFAULT_TIMEOUT_S = 10.0
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REF = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_MAX_ROUTES = 65536
#: A stream that is silent for so long is asked whether it still is.
_STREAM_IDLE_S = 1.0


class _Route:
    """Where a reference leads, and how many messages went there."""

    __slots__ = ("sequence", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.sequence = 0


class Node:
    """A process's place among the actors. Made by `Node.connect`; `async with` closes it."""

    def __init__(self, transport: Transport, *, role: str, instance: str, tracer: Tracer | None = None) -> None:
        for part in (role, instance):
            if not _NAME.fullmatch(part) or part in ("any", "all", "bus"):
                raise ValueError(
                    f"{part!r} cannot be a role or instance: letters, digits, _ and -, not any, all or bus"
                )
        self.transport = transport
        self.role = role
        self.instance = instance
        self.name = f"{role}.{instance}"
        self.tracer = tracer
        self.log: Any = structlog.get_logger("actors.runtime").bind(node=self.name)
        #: Tells this process from an earlier one of the same name.
        self.run = secrets.randbits(48)
        #: Messages nobody handled, by reason: mailbox-full, expired, stale-epoch, undecodable, unknown-message,
        #: no-route, duplicate, refused, unsent, late-reply.
        self.dead_letters: Counter[str] = Counter()
        #: Messages that were lost on the way to this node, as far as sequence numbers tell.
        self.missed = 0
        self.fences = Fences()
        #: The lease whose epoch everything sent from here carries, even when it is lost.
        self.lease: Lease | None = None
        self.is_draining = False
        self._loop = asyncio.get_running_loop()
        self._routes: dict[str, _Route] = {}
        self._pending: dict[str, PendingAsk | PendingStream] = {}
        self._calls_made = 0
        self._inbox = f"_R.{self.name}.ask."  # apart from the inboxes that JetStream makes under the same prefix
        self._hosts: set[ActorHost] = set()
        self._leases: list[Lease] = []
        self._bus = Bus(self)
        self._outbox = Outbox(self, on_unsent=self._on_unsent)
        self._decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
        self._last_logged_s = -math.inf

    # Life

    @classmethod
    async def connect(cls, transport: Transport, *, role: str, instance: str, tracer: Tracer | None = None) -> Self:
        """Open the transport under this name. `tracer`: makes the spans of handlers; None makes none."""
        node = cls(transport, role=role, instance=instance, tracer=tracer)
        await transport.open(role=role, instance=instance)
        transport.on_forbidden(node._on_forbidden)
        await transport.subscribe(f"{node._inbox}*", node._on_reply)
        return node

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect, without ceremony. Everything waiting here ends with `Disconnected`."""
        for host in list(self._hosts):
            host.stop()
        for call in list(self._pending.values()):
            call.fail(Disconnected(f"{self.name} was closed"))
        await self._outbox.close(1.0)
        await self.transport.close()

    async def drain(self, timeout_s: float = 10.0) -> None:
        """Leave in good order: nothing accepted is dropped, unless it takes longer than `timeout_s`.

        Leave the queue groups → refuse new asks → let actors finish → say goodbye on the bus → stop the actors and
        release the leases → drain the connection. Afterwards `serve` returns.
        """
        from actors.runtime.heartbeat import Goodbye

        self.is_draining = True
        deadline_s = self._loop.time() + timeout_s
        await asyncio.gather(*(host.drain(deadline_s) for host in list(self._hosts)))
        await self.publish(self.role, Goodbye(self.instance, self.epoch))
        hosts = list(self._hosts)
        for host in hosts:
            host.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(deadline_s, self._loop.time() + 1.0)):
                for host in hosts:
                    await host.finished.wait()
        for lease in list(self._leases):
            await lease.release()
        await self.close()

    async def serve(self, actor: Actor, *, ready: asyncio.Event | None = None) -> None:
        """Run an actor: receive for `role.instance` and `role.any` until the node drains or this is cancelled.

        `ready` is set once messages reach it. :raises Exception: whatever the actor raised, if it crashed.
        """
        if actor.role != self.role:
            raise ValueError(f"an actor of role {actor.role!r} cannot be served by {self.name}")
        host = ActorHost(self, actor)
        self._hosts.add(host)
        try:
            await host.run(ready)
        finally:
            self._hosts.discard(host)

    @property
    def mailboxes(self) -> list[tuple[str, int, int]]:
        """Role, messages held, and messages held at most, of each actor that is served here."""
        return [host.mailbox for host in self._hosts]

    def clock(self) -> float:
        """Seconds on the clock that all deadlines here are measured by."""
        return self._loop.time()

    # Sending

    @property
    def epoch(self) -> int:
        """The epoch that messages from here carry: of the last lease held, 0 if there was none."""
        return self.lease.epoch if self.lease is not None else 0

    async def tell(self, ref: str, message: Message, *, timeout_s: float | None = None, traceparent: str = "") -> None:
        """Send and forget. A receiver that sees it later than `timeout_s` drops it.

        Never waits for the receiver. Without a connection and with a full buffer it is counted as `unsent`, like any
        other loss on the way; the next message shows the receiver the gap. :raises MessageTooLarge: nothing was sent.
        """
        route = self._route(ref)
        route.sequence += 1
        if message.trace and not traceparent:
            traceparent = inject()
        payload = self._pack(Kind.TELL, message, route.sequence, timeout_s, traceparent)
        await self._outbox.publish(route.subject, payload)

    def tell_soon(self, ref: str, message: Message, *, timeout_s: float | None = None, traceparent: str = "") -> None:
        """`tell` for callers that cannot await, cheaper by a coroutine. Order among `tell` and `tell_soon` is kept.

        :raises MessageTooLarge: nothing was sent.
        """
        route = self._route(ref)
        route.sequence += 1
        if message.trace and not traceparent:
            traceparent = inject()
        self._outbox.post(route.subject, self._pack(Kind.TELL, message, route.sequence, timeout_s, traceparent))

    async def publish(self, topic: str, message: Message) -> None:
        """Tell everybody who subscribed to the topic. Lossy, like `tell`."""
        await self.tell(f"bus.{topic}", message)

    async def ask(
        self, ref: str, message: Message, *, want: type[M], timeout_s: float | None = None, traceparent: str = ""
    ) -> M:
        """Send and await the reply, which must be a `want` (a type, or a union of types).

        Takes at most `timeout_s`, and never longer than what is left of the message being handled. When the caller is
        cancelled, so is the handler.

        :raises Busy, DeadlineExceeded, Crashed, NoRoute, Failed: see `actors.runtime.errors`.
        """
        remaining_s = self._remaining(timeout_s)
        call = PendingAsk(self._route(ref).subject, self._loop)
        token, reply = self._expect(call)
        try:
            async with asyncio.timeout(remaining_s):
                await self._send_call(Kind.ASK, ref, message, reply, remaining_s, traceparent)
                envelope = await call.result()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer from {ref} in {remaining_s:.3f} s") from None
        except asyncio.CancelledError:
            self._control(Kind.CANCEL, ref, reply)
            raise
        finally:
            del self._pending[token]
        return self._read(envelope, want)

    async def stream(
        self,
        ref: str,
        message: Message,
        *,
        want: type[M],
        timeout_s: float | None = None,
        window: int = 64,
        traceparent: str = "",
    ) -> AsyncGenerator[M, None]:
        """Iterate over a streaming reply, in order and without loss. At most `window` items are ahead of the reader.

        `timeout_s` is for the whole of it. Leaving the loop cancels the generator at the other end: when this one is
        closed, at the latest by the garbage collector; use `contextlib.aclosing` to have it at once.

        :raises Gap: an item was lost. :raises Busy, DeadlineExceeded, Crashed, NoRoute, Failed: as for `ask`.
        """
        remaining_s = self._remaining(timeout_s)
        deadline_s = self._loop.time() + remaining_s
        role = ref.partition(".")[0]
        call = PendingStream(self._route(ref).subject, self._loop, window=window)
        token, reply = self._expect(call)
        try:
            await self._send_call(Kind.STREAM, ref, message, reply, remaining_s, traceparent, credit=window)
            while True:
                left_s = deadline_s - self._loop.time()
                try:
                    envelope = await call.next(timeout_s=max(0.0, min(left_s, _STREAM_IDLE_S)))
                except TimeoutError:
                    if left_s <= _STREAM_IDLE_S:
                        raise DeadlineExceeded(f"the stream from {ref} took longer than {remaining_s:.3f} s") from None
                    # The last credit, or the end, may have been lost; the answer to this tells which.
                    self._control(Kind.CREDIT, ref, reply, index=call.granted)
                    continue
                if envelope is None:
                    return
                # From here on it is known which of the role has taken it.
                ref = f"{role}.{envelope.meta.sender.partition('.')[2]}"
                yield self._read(envelope, want)
                if call.renew_credit():
                    self._control(Kind.CREDIT, ref, reply, index=call.granted)
        finally:
            del self._pending[token]
            if call.is_open:
                self._control(Kind.CANCEL, ref, reply)

    # Receiving from the bus

    async def subscribe(
        self, topic: str, message_type: type[M], callback: Callable[[M, Context], None]
    ) -> Callable[[], None]:
        """Call back for every message of the type on a topic (`>`: all topics), until what is returned is called.

        The callback must not wait. Messages of other types on the topic are skipped.
        """
        return await self._bus.subscribe(topic, message_type, callback)

    # For the runtime itself

    def dead_letter(self, reason: str, **details: Any) -> None:
        """Count a message that nobody handles; log one a second."""
        self.dead_letters[reason] += 1
        now_s = self._loop.time()
        if now_s - self._last_logged_s >= 1.0:
            self._last_logged_s = now_s
            self.log.warning("dead letter", reason=reason, count=self.dead_letters[reason], **details)

    def refuse(self, reply: str, error: ActorError) -> None:
        """Answer a call with an error. Does not wait."""
        self.reply_soon(reply, Kind.ERROR, Failure.of(error))

    def reply_soon(self, reply: str, kind: Kind, message: Message | None, *, index: int = 0) -> None:
        """Answer a call. Does not wait. :raises MessageTooLarge: nothing was sent."""
        meta = Meta(kind, self.name, self.run, 0, None, *self._fence(), "", index)
        self._outbox.post(reply, pack(meta, message, limit_bytes=self.transport.max_message_bytes))

    async def listen(self, ref: str, callback: Delivered, *, queue: str = "") -> Subscription:
        """Subscribe to the subject of a reference."""
        return await self.transport.subscribe(f"hg.v1.{ref}", callback, queue=queue)

    async def flush(self) -> None:
        """Return when the server has everything sent so far."""
        await self.transport.flush()

    def holds(self, lease: Lease) -> None:
        """Note a lease that was acquired: it stamps what is sent, and is released by `drain`."""
        self._leases.append(lease)
        self.lease = lease

    def holds_no_more(self, lease: Lease) -> None:
        """Note that a lease was lost or released. What is still sent carries its epoch, so that it can be fenced."""
        if lease in self._leases:
            self._leases.remove(lease)

    def _on_unsent(self, subject: str, reason: str) -> None:
        self.dead_letter("unsent", subject=subject, error=reason)

    def _route(self, ref: str) -> _Route:
        route = self._routes.get(ref)
        if route is None:
            if not _REF.fullmatch(ref):
                raise ValueError(f"{ref!r} is not an address: role.instance, or role.any")
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.pop(next(iter(self._routes)))
            route = self._routes[ref] = _Route(f"hg.v1.{ref}")
        return route

    def _fence(self) -> tuple[str, int]:
        return ("", 0) if self.lease is None else (self.lease.key, self.lease.epoch)

    def _pack(
        self,
        kind: Kind,
        message: Message | None,
        sequence: int,
        remaining_s: float | None,
        traceparent: str,
        *,
        index: int = 0,
        call: str = "",
    ) -> bytes:
        fence, epoch = self._fence()
        meta = Meta(kind, self.name, self.run, sequence, remaining_s, fence, epoch, traceparent, index, call)
        return pack(meta, message, limit_bytes=self.transport.max_message_bytes)

    def _remaining(self, timeout_s: float | None) -> float:
        ctx = current_context.get()
        inherited_s = math.inf if ctx is None or ctx.node is not self else ctx.remaining_s
        if timeout_s is None:
            return min(inherited_s, DEFAULT_TIMEOUT_S) if inherited_s == math.inf else inherited_s
        return min(timeout_s, inherited_s)

    def _expect(self, call: PendingAsk | PendingStream) -> tuple[str, str]:
        self._calls_made += 1
        token = f"{self.run:x}-{self._calls_made:x}"
        self._pending[token] = call
        return token, self._inbox + token

    async def _send_call(
        self,
        kind: Kind,
        ref: str,
        message: Message,
        reply: str,
        remaining_s: float,
        traceparent: str,
        *,
        credit: int = 0,
    ) -> None:
        route = self._route(ref)
        route.sequence += 1
        if message.trace and not traceparent:
            traceparent = inject()
        payload = self._pack(kind, message, route.sequence, remaining_s, traceparent, index=credit)
        await self.transport.publish(route.subject, payload, reply)

    def _control(self, kind: Kind, ref: str, call: str, *, index: int = 0) -> None:
        role, _, instance = ref.partition(".")
        payload = self._pack(kind, None, 0, None, "", index=index, call=call)
        self._outbox.post(f"hg.v1.{role}.{'all' if instance == 'any' else instance}", payload)

    def _decoder(self, message_type: Any) -> msgspec.msgpack.Decoder[Any]:
        decoder = self._decoders.get(message_type)
        if decoder is None:
            decoder = self._decoders[message_type] = msgspec.msgpack.Decoder(message_type)
        return decoder

    def _read(self, envelope: Envelope, want: type[M]) -> M:
        """The message in a reply, checked against the sender's lease."""
        if envelope.meta.kind == Kind.ERROR:
            raise self._decoder(Failure).decode(envelope.body).error()
        meta = envelope.meta
        if not self.fences.admits(meta.fence, meta.epoch):
            self.dead_letter("stale-epoch", sender=meta.sender, fence=meta.fence, epoch=meta.epoch)
            raise Failed("stale-epoch", f"the reply of {meta.sender} is from a lease that was replaced")
        try:
            message: M = self._decoder(want).decode(envelope.body)
        except msgspec.MsgspecError as error:
            raise Failed("undecodable", f"the reply of {envelope.meta.sender} is not a {want}: {error}") from error
        return message

    def _on_reply(self, subject: str, reply: str, payload: bytes, no_route: bool) -> None:
        call = self._pending.get(subject[len(self._inbox) :])
        if no_route:
            self.dead_letter("no-route")
            if call is not None:
                call.fail(NoRoute(f"nobody listens on {call.subject}"))
            return
        if call is None:
            self.dead_letter("late-reply")
            return
        try:
            call.deliver(decode_envelope(payload))
        except msgspec.MsgspecError as error:
            self.dead_letter("undecodable", error=str(error))
            call.fail(Failed("undecodable", str(error)))

    def _on_forbidden(self, subject: str) -> None:
        for call in list(self._pending.values()):
            if call.subject.lower() == subject.lower():
                call.fail(Forbidden(f"{self.role} may not publish to {call.subject}"))
