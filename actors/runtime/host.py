"""Runs one actor: its bounded mailbox, and how each message is opened, handled and answered.

The transport's callbacks run one at a time and must not wait, so `receive` only looks at the envelope: it refuses,
queues, or, if the actor is idle and the handler is a plain function, calls it on the spot. Everything else happens in
one task that takes messages in order.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import msgspec

from actors.runtime.actor import Actor, Context, current_context
from actors.runtime.errors import ActorError, Busy, Crashed, DeadlineExceeded, Failed, LeaseLost
from actors.runtime.message import Kind, Message, Meta, decode_envelope, tag_of
from actors.runtime.opening import Opened, Opener, Parcel
from actors.runtime.tracing import consumer_span

if TYPE_CHECKING:
    from actors.runtime.node import Node
    from actors.runtime.transport import Subscription

__all__ = ("ActorHost",)


class _Call:
    """A call being worked on, so that its caller can cancel it or give it credit."""

    __slots__ = ("credit", "is_cancelled", "more", "scope")

    def __init__(self, scope: asyncio.Timeout, credit: int) -> None:
        self.scope = scope
        self.credit = credit
        self.more = asyncio.Event()
        self.is_cancelled = False


class ActorHost:
    """One actor at work on one node, from `on_start` to `on_stop`."""

    def __init__(self, node: Node, actor: Actor) -> None:
        self._node = node
        self._actor = actor
        self._opener = Opener(node, actor)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Parcel | Opened] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._calls: dict[str, _Call] = {}
        self._idle: asyncio.Future[None] | None = None
        self._is_handling = False
        self._is_started = False
        self._is_draining = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._quiet: asyncio.Future[None] | None = None
        self._crash: BaseException | None = None
        self._shared: Subscription | None = None
        self._listening: list[Callable[[], None]] = []
        #: Set when the actor is gone, its leases released.
        self.finished = asyncio.Event()
        self._owned: set[asyncio.Task[Any]] = set()

    # Life

    async def run(self, ready: asyncio.Event | None = None) -> None:
        """Serve until `stop`.

        :raises Exception: what the actor raised, if it crashed (a group, if several things did).
        """
        actor = self._actor
        actor.node = self._node
        actor.leases = []
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                actor._spawn = self._spawn
                actor._listen = self._listen
                self._spawn(self._live(ready))
                await self._ended
                for task in (*self._owned, *self._running):
                    task.cancel()
        except BaseExceptionGroup as error:
            self._crash = _only(error)
            raise self._crash from None
        except BaseException as error:
            self._crash = error
            raise
        finally:
            self._refuse_queued()
            try:
                await actor.on_stop()
            finally:
                for forget in self._listening:
                    forget()
                for lease in actor.leases:
                    await lease.release()
                self.finished.set()

    async def _live(self, ready: asyncio.Event | None) -> None:
        actor, node = self._actor, self._node
        subscriptions: list[Subscription] = []
        try:
            await actor.on_start(node)
            self._is_started = True
            for instance, receive in ((node.instance, self.receive_direct), ("all", self.receive_shared)):
                subscriptions.append(await node.listen(f"{node.role}.{instance}", receive))
            if not self._is_draining:
                self._shared = await node.listen(f"{node.role}.any", self.receive_shared, queue=node.role)
            await node.flush()
            if ready is not None:
                ready.set()
            await self._work()
        finally:
            if self._shared is not None:
                subscriptions.append(self._shared)
            for subscription in subscriptions:
                await subscription.unsubscribe()

    async def drain(self, deadline_s: float) -> None:
        """Leave the queue group, refuse new asks, and finish what is here; by `deadline_s` on the loop's clock."""
        if self._shared is not None:
            await self._shared.unsubscribe()
            await self._node.flush()
        self._is_draining = True
        try:
            async with asyncio.timeout_at(deadline_s):
                if self._is_started:
                    await self._actor.on_drain()
                while self._queue or self._running or self._is_handling:
                    self._quiet = self._loop.create_future()
                    await self._quiet
        except TimeoutError:
            self._node.log.warning("drain ran out of time", waiting=len(self._queue), running=len(self._running))

    @property
    def mailbox(self) -> tuple[str, int, int]:
        """Role, messages that wait or are being handled, and the most of them."""
        return self._actor.role, len(self._queue) + len(self._running) + self._is_handling, self._actor.mailbox

    def stop(self) -> None:
        """Let `run` return."""
        if not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self._crash = self._crash or error
        if not self._ended.done():
            self._ended.set_exception(error)

    async def _listen(self, topic: str, message_type: Any, callback: Callable[[Any, Context], None]) -> None:
        self._listening.append(await self._node.subscribe(topic, message_type, callback))

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._group.create_task(coroutine)
        self._owned.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._owned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = self._crash or error

    def _parting(self) -> ActorError:
        """What to tell those whose message is not handled any more."""
        if isinstance(self._crash, Exception | BaseExceptionGroup):
            return Crashed(f"{self._node.name} ended before it came to this message: {_describe(self._crash)}")
        return Failed("draining" if self._is_draining else "stopped", self._node.name)

    def _refuse_queued(self) -> None:
        error = self._parting()
        while self._queue:
            parcel = self._queue.popleft()
            if parcel.reply:
                self._node.refuse(parcel.reply, error)

    # Intake: no waiting here

    def receive_direct(self, subject: str, reply: str, payload: bytes, no_route: bool) -> None:
        """A message to this very instance."""
        self._receive(reply, payload, is_direct=True)

    def receive_shared(self, subject: str, reply: str, payload: bytes, no_route: bool) -> None:
        """A message to the role; its sequence numbers are shared with the other instances, so they tell of no gap."""
        self._receive(reply, payload, is_direct=False)

    def _receive(self, reply: str, payload: bytes, *, is_direct: bool) -> None:
        node = self._node
        try:
            meta, body = (envelope := decode_envelope(payload)).meta, envelope.body
        except msgspec.MsgspecError as error:
            node.dead_letter("undecodable", error=str(error))
            if reply:
                node.refuse(reply, Failed("undecodable", str(error)))
            return
        if meta.kind >= Kind.CANCEL:
            self._control(meta)
            return
        if self._crash is not None or self._ended.done() or (self._is_draining and reply):
            if reply:
                node.refuse(reply, self._parting())
            return
        if self._idle is None and len(self._queue) + len(self._running) >= self._actor.mailbox:
            node.dead_letter("mailbox-full", sender=meta.sender)
            if reply:
                node.refuse(reply, Busy(f"the mailbox of {node.name} is full ({self._actor.mailbox})"))
            return
        parcel = Parcel(meta, body, reply, self._loop.time(), is_direct)
        if self._idle is None:
            self._queue.append(parcel)
            return
        try:
            opened = self._opener.open(parcel)
        except Exception as error:  # of the actor's on_gap
            self._fail(error)
            return
        if opened is None:
            return
        if opened.handler.is_sync:
            self._call(opened)
        elif opened.handler.is_concurrent and len(self._running) < self._actor.mailbox:
            self._start(opened)
        elif opened.handler.is_concurrent:
            node.dead_letter("mailbox-full", sender=meta.sender)
            if reply:
                node.refuse(reply, Busy(f"{node.name} already works on {len(self._running)} messages"))
        else:
            self._queue.append(opened)
            idle, self._idle = self._idle, None
            idle.set_result(None)

    def _control(self, meta: Meta) -> None:
        call = self._calls.get(meta.call)
        if meta.kind == Kind.CREDIT:
            if call is None and not any(parcel.reply == meta.call for parcel in self._queue):
                self._node.refuse(meta.call, Failed("unknown-stream"))
            elif call is not None:
                call.credit = max(call.credit, meta.index)
                call.more.set()
            return
        if call is not None:
            call.is_cancelled = True
            call.scope.reschedule(self._loop.time())
            return
        for parcel in self._queue:
            if parcel.reply == meta.call:
                self._queue.remove(parcel)
                return

    # Handling

    async def _work(self) -> None:
        while True:
            while self._queue:
                item = self._queue.popleft()
                opened = item if isinstance(item, Opened) else self._opener.open(item)
                if opened is None:
                    continue
                if opened.handler.is_sync:
                    self._call(opened)
                elif opened.handler.is_concurrent:
                    self._start(opened)
                else:
                    self._is_handling = True
                    try:
                        await self._handle(opened)
                    finally:
                        self._is_handling = False
                if self._ended.done():
                    return
            self._check_quiet()
            self._idle = self._loop.create_future()
            await self._idle

    def _call(self, opened: Opened) -> None:
        """Run a plain function."""
        handler, message, ctx = opened
        try:
            self._reply(ctx, handler.function(self._actor, message, ctx))
        except ActorError as error:
            if isinstance(error, LeaseLost):
                self._fail(error)
            self._refused(ctx, error)
        except Exception as error:
            self._crashed(ctx, error)
            self._fail(error)

    def _start(self, opened: Opened) -> None:
        """Run a handler as its own task."""
        task = self._group.create_task(self._handle(opened))
        self._running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._check_quiet()

    def _check_quiet(self) -> None:
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    async def _handle(self, opened: Opened) -> None:
        """Run a coroutine handler or a generator under its deadline, and answer whoever waits."""
        handler, message, ctx = opened
        token = current_context.set(ctx)
        scope = asyncio.timeout_at(None if ctx.deadline == math.inf else ctx.deadline)
        call = _Call(scope, ctx.meta.index)
        if ctx.reply:
            self._calls[ctx.reply] = call
        span = (
            consumer_span(
                self._node.tracer, f"{self._node.role} {tag_of(type(message))}", ctx.traceparent, ctx.node.name
            )
            if message.trace and ctx.traceparent
            else nullcontext()
        )
        try:
            with span:
                async with scope:
                    if handler.is_stream:
                        await self._produce(handler.function(self._actor, message, ctx), ctx, call)
                    else:
                        self._reply(ctx, await handler.function(self._actor, message, ctx))
        except LeaseLost as error:
            self._crashed(ctx, error)
            raise
        except ActorError as error:
            self._refused(ctx, error)
        except asyncio.CancelledError:
            self._refused(ctx, Failed("stopped", self._node.name))
            raise
        except Exception as error:
            if not (isinstance(error, TimeoutError) and scope.expired()):
                self._crashed(ctx, error)
                raise
            if not call.is_cancelled:
                self._node.dead_letter("expired", sender=ctx.sender)
                self._refused(ctx, DeadlineExceeded(f"{self._node.name} was still at work on it"))
        finally:
            self._calls.pop(ctx.reply, None)
            current_context.reset(token)

    async def _produce(self, items: AsyncGenerator[Message, None], ctx: Context, call: _Call) -> None:
        node, sent = self._node, 0
        try:
            async for item in items:
                while sent >= call.credit:
                    call.more.clear()
                    await call.more.wait()
                sent += 1
                node.reply_soon(ctx.reply, Kind.ITEM, item, index=sent)
        finally:
            await items.aclose()
        node.reply_soon(ctx.reply, Kind.END, None, index=sent)

    def _reply(self, ctx: Context, result: Message | None) -> None:
        if not ctx.reply:
            return
        if result is None:
            raise Failed("no-reply", "this message is a tell, it has no reply")
        self._node.reply_soon(ctx.reply, Kind.REPLY, result)

    def _refused(self, ctx: Context, error: ActorError) -> None:
        if ctx.reply:
            self._node.refuse(ctx.reply, error)
        elif not isinstance(error, DeadlineExceeded):
            self._node.dead_letter("refused", sender=ctx.sender, error=str(error))

    def _crashed(self, ctx: Context, error: Exception) -> None:
        self._crash = self._crash or error
        if ctx.reply:
            self._node.refuse(ctx.reply, Crashed(f"{self._node.name}: {_describe(error)}"))


def _describe(error: BaseException) -> str:
    inner = _only(error) if isinstance(error, BaseExceptionGroup) else error
    return f"{type(inner).__name__}: {inner}"


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in nested groups, or the group if there are several."""
    inner: BaseException = group
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return inner
