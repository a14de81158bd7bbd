"""What tests on a real nats-server share: a link that can fail, and small waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from actors.runtime import Actor, Node
from headgate.nats import NatsServer

Connect = Callable[..., Awaitable[Node]]


async def serve(node: Node, actor: Actor) -> asyncio.Task[None]:
    """Start serving; returns when the actor receives."""
    ready = asyncio.Event()
    task = asyncio.create_task(node.serve(actor, ready=ready))
    await asyncio.wait_for(ready.wait(), 5)
    return task


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def restart(server: NatsServer) -> None:
    """kill -9, and start again on the same port and store."""
    server.kill()
    await server.wait()
    await server.start()


class Link:
    """A TCP proxy in front of a server. `hold` makes it half-open: connections stay, and nothing passes any more."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    def url(self, server: NatsServer, role: str) -> str:
        assert self._server is not None
        return f"nats://{role}:{server.password(role)}@127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._writers.add(sink)
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)
