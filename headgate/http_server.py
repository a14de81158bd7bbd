"""HTTP servers that live in the event loop of a role, beside its actor."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from headgate.errors import HeadgateError

__all__ = ["serving"]


class _Server(uvicorn.Server):
    """Leaves the signals to the frame of the process."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # it has logged why, and would end the process
            where = f"port {self.config.port} on {self.config.host}"
            raise HeadgateError(f"{where} cannot be listened on: give another one, or end who has it") from None


@asynccontextmanager
async def serving(*configs: uvicorn.Config) -> AsyncIterator[list[int]]:
    """Serve for as long as the context is open, then let what is under way end. Gives the ports, in order.

    :raises HeadgateError: an address cannot be listened on.
    """
    servers = [_Server(config) for config in configs]
    tasks = [asyncio.create_task(server.serve(), name="http") for server in servers]
    try:
        while not all(server.started for server in servers):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
        yield [server.servers[0].sockets[0].getsockname()[1] for server in servers]
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
