"""Actors: a class whose methods handle messages, one at a time.

An actor sees one message at a time, in the order of arrival, so its state needs no locks. Three kinds of handler leave
that line on purpose: `@handles(concurrent=True)` runs as its own task (for what waits long), an async generator is a
streaming reply and also its own task, and a plain `def` is run without a task at all (for what is sent thousands of
times a second).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Union, overload

import msgspec

from actors.runtime.message import Kind, Message, Meta, tag_of

if TYPE_CHECKING:
    from actors.runtime.lease import Lease
    from actors.runtime.node import Node

__all__ = ("Actor", "Context", "Handler", "current_context", "handles")

#: The message being handled, so that what a handler asks in turn inherits its deadline.
current_context: ContextVar[Context | None] = ContextVar("actors_current_context", default=None)


class Context:
    """About the message being handled."""

    __slots__ = ("deadline", "loop", "meta", "missed", "node", "reply")

    def __init__(
        self,
        node: Node,
        loop: asyncio.AbstractEventLoop,
        meta: Meta,
        *,
        reply: str,
        deadline: float,
        missed: int,
    ) -> None:
        self.node = node
        self.loop = loop
        self.meta = meta
        self.reply = reply
        #: On the clock of this loop; `inf` if there is none.
        self.deadline = deadline
        #: Messages lost between the one before from this sender and this one.
        self.missed = missed

    @property
    def remaining_s(self) -> float:
        """Time left to answer; `inf` without a deadline, never negative."""
        return math.inf if self.deadline == math.inf else max(0.0, self.deadline - self.loop.time())

    @property
    def sender(self) -> str:
        """`role.instance` of who sent it."""
        return self.meta.sender

    @property
    def sender_role(self) -> str:
        """The role of who sent it."""
        return self.meta.sender.partition(".")[0]

    @property
    def sender_instance(self) -> str:
        """The instance of who sent it."""
        return self.meta.sender.partition(".")[2]

    @property
    def run(self) -> int:
        """Changes when the sender's process is another one than before."""
        return self.meta.run

    @property
    def epoch(self) -> int:
        """The epoch of the lease the sender holds, 0 for none."""
        return self.meta.epoch

    @property
    def fence(self) -> str:
        """The key of the lease the sender holds, "" for none."""
        return self.meta.fence

    @property
    def sequence(self) -> int:
        """Counts messages from this run of the sender to this destination, from 1."""
        return self.meta.sequence

    @property
    def traceparent(self) -> str:
        """W3C trace context of the sender, "" for none."""
        return self.meta.traceparent

    @property
    def wants_reply(self) -> bool:
        """Whether somebody waits for an answer."""
        return self.meta.kind != Kind.TELL and bool(self.reply)


class Handler(typing.NamedTuple):
    """One `@handles` method."""

    function: Callable[..., Any]
    message_type: type[Message]
    is_sync: bool
    is_stream: bool
    is_concurrent: bool


F = typing.TypeVar("F", bound=Callable[..., Any])
M = typing.TypeVar("M", bound=Message)


@overload
def handles(function: F) -> F: ...
@overload
def handles(*, concurrent: bool = False) -> Callable[[F], F]: ...
def handles(function: Any = None, *, concurrent: bool = False) -> Any:
    """Mark a method `(self, msg: SomeMessage, ctx: Context)` as the handler of the type its `msg` is annotated with.

    What it returns is the reply (None: no reply was wanted). `Failed` and the other `ActorError`s are answered to the
    caller; any other exception ends the actor. `concurrent`: run as a task of its own, bounded by the mailbox size.
    """

    def mark(method: F) -> F:
        method._handles = concurrent  # type: ignore[attr-defined]
        return method

    return mark if function is None else mark(function)


def _message_types(owner: type, function: Callable[..., Any]) -> list[type[Message]]:
    parameters = list(inspect.signature(function).parameters.values())
    where = f"{owner.__name__}.{function.__name__}"
    if len(parameters) != 3:
        raise TypeError(f"{where} must take (self, msg, ctx), it takes {[p.name for p in parameters]}")
    annotation = parameters[1].annotation
    if isinstance(annotation, str):
        # Only this one: the others may name types that are imported for checkers alone.
        try:
            annotation = eval(annotation, getattr(function, "__globals__", {}))
        except NameError as error:
            raise TypeError(f"{where}: {error}; message types live at the top of a module") from error
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    found = list(typing.get_args(annotation)) if is_union else [annotation]
    for message_type in found:
        try:
            tag_of(message_type)
        except TypeError as error:
            raise TypeError(f"{where}: {error}") from error
    return found


class _Nothing(Message, frozen=True, tag=""):
    """What an actor understands that has no handlers."""


class Actor:
    """Base of all actors. Owns its tasks: whatever it starts with `every` or `spawn` ends with it."""

    #: The first half of its address.
    role: ClassVar[str] = "actor"
    #: Messages that may wait or run at a time; more are answered `Busy`.
    mailbox: ClassVar[int] = 64
    #: Handlers by message type and by tag; filled from `@handles`.
    handlers: ClassVar[dict[type[Message], Handler]] = {}

    node: Node
    #: Leases taken with `hold`.
    leases: list[Lease]
    _spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    _listen: Callable[[str, Any, Callable[[Any, Context], None]], Awaitable[None]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        found: dict[type[Message], Handler] = {}
        for base in reversed(cls.__mro__):
            for function in vars(base).values():
                concurrent = getattr(function, "_handles", None)
                if concurrent is None:
                    continue
                is_stream = inspect.isasyncgenfunction(function)
                is_sync = not is_stream and not inspect.iscoroutinefunction(function)
                for message_type in _message_types(cls, function):
                    found[message_type] = Handler(
                        function, message_type, is_sync, is_stream, is_stream or (concurrent and not is_sync)
                    )
        tags = [tag_of(message_type) for message_type in found]
        if len(set(tags)) != len(tags):
            raise TypeError(f"{cls.__name__} handles two messages of the same tag: {sorted(tags)}")
        cls.handlers = found

    @classmethod
    def decoder(cls) -> msgspec.msgpack.Decoder[Any]:
        """A decoder for the union of everything this actor handles."""
        return msgspec.msgpack.Decoder(Union[tuple(cls.handlers) or (_Nothing,)])  # noqa: UP007

    async def on_start(self, node: Node) -> None:
        """Called before the first message. What it raises is raised from `serve`."""

    async def on_drain(self) -> None:
        """Called when the node begins to drain: the queue group is left, new asks are refused. Hand back work here."""

    async def on_stop(self) -> None:
        """Called last, however the actor ended."""

    def on_gap(self, sender: str, missed: int) -> None:
        """Called before the first message after a loss, with the number lost from that sender."""

    def every(self, interval_s: float, action: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Await `action()` now and then at this interval, without drift and without catching up on missed turns."""

        async def repeat() -> None:
            loop = asyncio.get_running_loop()
            due = loop.time()
            while True:
                await action()
                due = max(due + interval_s, loop.time())
                await asyncio.sleep(due - loop.time())

        return self.spawn(repeat())

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this actor: its exception ends the actor, the actor's end cancels it."""
        return self._spawn(coroutine)

    async def hold(self, lease: Lease) -> int:
        """Wait for the lease and keep it for as long as this actor lives; losing it ends the actor with `LeaseLost`.

        From here on everything this node sends carries the epoch, which is returned.
        """
        self.leases.append(lease)
        epoch = await lease.acquire()
        self.spawn(lease.keep())
        return epoch

    async def listen(self, topic: str, message_type: type[M], callback: Callable[[M, Context], None]) -> None:
        """Follow a topic of the bus for as long as this actor lives. The callback must not wait."""
        await self._listen(topic, message_type, callback)
