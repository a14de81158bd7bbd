"""What the tests of the runtime share: a few messages, an actor that does it all, a stage in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from actors.runtime import Actor, Context, Failed, MemoryBroker, MemoryTransport, Message, Node, handles, simulation


class Do(Message, frozen=True, tag="do"):
    """Work for `seconds`, then answer with `n`."""

    n: int = 0
    seconds: float = 0.0


class DoAside(Message, frozen=True, tag="do-aside"):
    """The same, concurrently."""

    n: int = 0
    seconds: float = 0.0


class Note(Message, frozen=True, tag="note"):
    """A hot tell."""

    n: int = 0


class Loose(Message, frozen=True, tag="loose"):
    """A tell that no fence stops."""

    fenced = False
    n: int = 0


class CountTo(Message, frozen=True, tag="count-to"):
    """Stream 1 to `n`, `pause_s` apart; crash, or refuse, at `crash_at` or `refuse_at`."""

    n: int = 0
    pause_s: float = 0.0
    crash_at: int = 0
    refuse_at: int = 0


class Explode(Message, frozen=True, tag="explode"):
    """Raise something unexpected."""


class Refuse(Message, frozen=True, tag="refuse"):
    """Raise `Failed`."""


class Relay(Message, frozen=True, tag="relay"):
    """Ask `to` to do work of `seconds`."""

    to: str
    seconds: float = 0.0


class Stranger(Message, frozen=True, tag="stranger"):
    """Nobody handles this."""


class Done(Message, frozen=True, tag="done"):
    n: int = 0


class Doer(Actor):
    """Writes down what happens to it."""

    role = "doer"
    mailbox = 4

    def __init__(self) -> None:
        self.diary: list[Any] = []
        self.contexts: list[Context] = []
        self.gaps: list[tuple[str, int]] = []
        self.at_once = 0
        self.most_at_once = 0
        self.noted = asyncio.Event()
        self.note_target = 0

    async def on_start(self, node: Node) -> None:
        self.diary.append("start")

    async def on_drain(self) -> None:
        self.diary.append("drain")

    async def on_stop(self) -> None:
        self.diary.append("stop")

    def on_gap(self, sender: str, missed: int) -> None:
        self.gaps.append((sender, missed))

    async def _work(self, n: int, seconds: float) -> Done:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(seconds)
            self.diary.append(n)
        except asyncio.CancelledError:
            self.diary.append(f"cancelled {n}")
            raise
        finally:
            self.at_once -= 1
        return Done(n)

    @handles
    async def do(self, msg: Do, ctx: Context) -> Done:
        self.contexts.append(ctx)
        return await self._work(msg.n, msg.seconds)

    @handles(concurrent=True)
    async def do_aside(self, msg: DoAside, ctx: Context) -> Done:
        return await self._work(msg.n, msg.seconds)

    @handles
    def note(self, msg: Note | Loose, ctx: Context) -> None:
        self.contexts.append(ctx)
        self.diary.append(msg.n)
        if msg.n == self.note_target:
            self.noted.set()

    @handles
    async def count_to(self, msg: CountTo, ctx: Context) -> AsyncGenerator[Done, None]:
        sent = 0
        try:
            for n in range(1, msg.n + 1):
                if n == msg.crash_at:
                    raise RuntimeError("as told")
                if n == msg.refuse_at:
                    raise Failed("enough", f"at {n}")
                await asyncio.sleep(msg.pause_s)
                sent = n
                yield Done(n)
        finally:
            self.diary.append(f"streamed {sent}")

    @handles
    async def explode(self, msg: Explode, ctx: Context) -> Done:
        raise ZeroDivisionError("as told")

    @handles
    async def refuse(self, msg: Refuse, ctx: Context) -> Done:
        raise Failed("no-thanks", "as told", retry_after_s=1.5)

    @handles(concurrent=True)
    async def relay(self, msg: Relay, ctx: Context) -> Done:
        return await ctx.node.ask(msg.to, Do(1, msg.seconds), want=Done, timeout_s=60.0)


class Stage:
    """Nodes in memory, and actors at work on them."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self._stack = AsyncExitStack()

    async def node(self, role: str = "asker", instance: str = "a0", **options: Any) -> Node:
        transport = MemoryTransport(self.broker, **options)
        return await self._stack.enter_async_context(await Node.connect(transport, role=role, instance=instance))

    async def serve(self, node: Node, actor: Actor) -> asyncio.Task[None]:
        """Start serving; returns when the actor receives."""
        ready = asyncio.Event()
        task = asyncio.create_task(node.serve(actor, ready=ready))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            await task
        return task

    async def doer(self, instance: str = "d0") -> tuple[Node, Doer, asyncio.Task[None]]:
        node = await self.node("doer", instance)
        actor = Doer()
        return node, actor, await self.serve(node, actor)

    async def close(self) -> None:
        await self._stack.aclose()


def play(scene: Callable[[Stage], Coroutine[Any, Any, None]], *, seed: int | None = 0, **broker: Any) -> None:
    """Run a scene in virtual time."""

    async def main() -> None:
        stage = Stage(MemoryBroker(**broker))
        try:
            await scene(stage)
        finally:
            await stage.close()

    simulation.run(main(), seed=seed)
