"""What the ledger learns of a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from actors.runtime import NatsTransport
from actors.usage import SETTLED_SUBJECT, USAGE_STREAM
from headgate.nats import NatsServer, provision
from headgate.nats.monitor import monitored
from observability.metrics import Metrics
from observability.metrics.nats_server import NatsServerMetrics


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.stop()


def _values(metrics: Metrics) -> dict[str, float]:
    families = (family for family in metrics.registry.collect() if family.name.startswith("headgate_nats_server"))
    return {sample.name: sample.value for family in families for sample in family.samples}


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_servers_figures_are_told_until_it_is_gone(server: NatsServer) -> None:
    """Connections and messages are the server's own count; when it stops it is down, and nothing raises."""
    metrics = Metrics("ledger", "l0")
    async with monitored([server.monitor_url], NatsServerMetrics(metrics), every_s=0.05):
        transport = NatsTransport(server.url("admin"), on_stale=lambda: None)
        await transport.open(role="admin", instance="x0")
        await _until(lambda: _values(metrics).get("headgate_nats_server_connections") == 1)
        before = _values(metrics)["headgate_nats_server_in_messages_total"]
        for _ in range(10):
            await transport.publish("hg.v1.bus.test", b"x")
        await transport.flush()
        await _until(lambda: _values(metrics)["headgate_nats_server_in_messages_total"] >= before + 10)
        assert _values(metrics)["headgate_nats_server_up"] == 1
        await transport.close()
        await server.stop()
        await _until(lambda: _values(metrics) == {"headgate_nats_server_up": 0})


async def test_the_ledger_may_ask_how_far_behind_it_is(server: NatsServer) -> None:
    """With its own permissions: nothing before its consumer is made, then all that it has not acknowledged."""
    await provision(server.url("admin"))
    admin = NatsTransport(server.url("admin"), on_stale=lambda: None)
    ledger = NatsTransport(server.url("ledger"), on_stale=lambda: None)
    await admin.open(role="admin", instance="x0")
    await ledger.open(role="ledger", instance="l0")
    assert await ledger.backlog(USAGE_STREAM, "ledger") == 0
    for number in range(5):
        await admin.append(SETTLED_SUBJECT, b"x", message_id=str(number))
    batches = ledger.consume(USAGE_STREAM, "ledger", batch=2)
    batch = await anext(batches)
    assert await ledger.backlog(USAGE_STREAM, "ledger") == 5
    for record in batch:
        await record.ack()
    await ledger.flush()
    assert await ledger.backlog(USAGE_STREAM, "ledger") == 5 - len(batch)
    await batches.aclose()  # type: ignore[attr-defined]
    await ledger.close()
    await admin.close()
