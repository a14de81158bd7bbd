"""A real nats-server for every test that asks for one, and a link to it that can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats_fixtures import Connect, Link

from actors.runtime import NatsTransport, Node
from headgate.nats import NatsServer, provision


def fail_if_stale() -> None:
    """Instead of ending the process of the tests."""
    raise AssertionError("the connection is stale")


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A running server on a free port, its buckets and streams made."""
    server = NatsServer(tmp_path / "nats")
    await server.start()
    await provision(server.url("admin"))
    yield server
    await server.stop()


@pytest.fixture
async def connect(nats_server: NatsServer) -> AsyncIterator[Connect]:
    """`await connect(role, instance, **options of NatsTransport)`: a node, closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def make(role: str, instance: str = "0", *, url: str = "", **options: Any) -> Node:
            options.setdefault("on_stale", fail_if_stale)
            transport = NatsTransport(url or nats_server.url(role), **options)
            return await stack.enter_async_context(await Node.connect(transport, role=role, instance=instance))

        yield make


@pytest.fixture
async def link(nats_server: NatsServer) -> AsyncIterator[Link]:
    """A link to the server that can be held and cut."""
    proxy = Link(nats_server.port)
    await proxy.start()
    yield proxy
    await proxy.stop()
