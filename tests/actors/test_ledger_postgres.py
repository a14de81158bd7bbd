"""The ledger on a PostgreSQL that dies: nothing is acknowledged before it is kept, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats_fixtures import Connect, serve, until
from postgres_server import PASSWORD, PostgresServer, postgres

from actors.ledger import Ledger
from actors.ledger_postgres import PostgresLedger
from actors.ledger_store import LedgerAway
from actors.messages import UsageOpened, UsageQuery, UsageRows, UsageSettled
from actors.runtime import Failed, NatsTransport, Node
from actors.usage import OPENED_SUBJECT, SETTLED_SUBJECT, encode_usage
from observability.metrics import LedgerMetrics, Metrics


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with postgres() as running:
        yield running


def ledger(server: PostgresServer) -> Ledger:
    return Ledger(PostgresLedger(server.url, password=PASSWORD), metrics=LedgerMetrics(Metrics("ledger", "l0")))


async def write(gateway: Node, numbers: range) -> None:
    """What a gateway writes of so many requests."""
    for number in numbers:
        request = f"r{number}"
        opened = UsageOpened(request, "acme", "k", "m", "g0", 10, 50, 1_700_000_000.0)
        settled = UsageSettled(request, 10, 7, 0, "stop", 1, 1_700_000_001.0)
        for subject, record in ((OPENED_SUBJECT, opened), (SETTLED_SUBJECT, settled)):
            await gateway.transport.append(subject, encode_usage(record), message_id=f"{request}:{subject}")


async def count(node: Node) -> tuple[int, int]:
    """Requests and output tokens that the ledger tells of; (-1, -1) while it cannot."""
    try:
        rows = (await node.ask("ledger.any", UsageQuery(), want=UsageRows, timeout_s=8.0)).rows
    except Failed:
        return -1, -1
    return (rows[0].requests, rows[0].output_tokens) if rows else (0, 0)


async def consumed(admin: Node) -> Any:
    """What JetStream knows of the ledger's progress."""
    assert isinstance(admin.transport, NatsTransport)
    return await admin.transport.js.consumer_info("usage", "ledger")


async def counted(node: Node, wanted: int) -> None:
    async with asyncio.timeout(40):
        while await count(node) != (wanted, 7 * wanted):
            await asyncio.sleep(0.1)


async def test_nothing_is_lost_when_the_database_is_killed_in_the_middle(
    server: PostgresServer, connect: Connect
) -> None:
    """Records come before, while and after it is gone; the ledger says that it is not ready, and catches up."""
    actor = ledger(server)
    node = await connect("ledger", "l0")
    gateway = await connect("gateway", "g0")
    serving = await serve(node, actor)
    await write(gateway, range(20))
    await counted(gateway, 20)
    writing = asyncio.create_task(write(gateway, range(20, 220)))
    await asyncio.to_thread(server.kill)
    await writing
    await until(lambda: bool(actor.not_ready()), 20)
    assert "PostgreSQL" in actor.not_ready()[0]
    assert PASSWORD not in actor.not_ready()[0]
    assert await count(gateway) == (-1, -1)
    assert not serving.done()
    await asyncio.to_thread(server.start)
    await counted(gateway, 220)
    await until(lambda: not actor.not_ready(), 20)
    admin = await connect("admin")
    async with asyncio.timeout(20):
        while (info := await consumed(admin)).num_ack_pending or info.num_pending:
            await asyncio.sleep(0.1)
    await node.drain(5.0)
    await serving


async def test_a_record_is_acknowledged_after_its_transaction_and_not_before(
    server: PostgresServer, connect: Connect
) -> None:
    """While somebody else holds the table, JetStream goes on to count the batch as not done."""
    actor = ledger(server)
    node, gateway, admin = await connect("ledger", "l0"), await connect("gateway", "g0"), await connect("admin")
    serving = await serve(node, actor)
    await write(gateway, range(1))
    await counted(gateway, 1)
    with server.connect() as other, other.transaction():
        other.execute("LOCK TABLE usage IN ACCESS EXCLUSIVE MODE")
        await write(gateway, range(1, 4))
        async with asyncio.timeout(10):
            while (await consumed(admin)).num_ack_pending == 0:
                await asyncio.sleep(0.05)
        info = await consumed(admin)
        assert info.ack_floor.stream_seq == 2
    await counted(gateway, 4)
    await node.drain(5.0)
    await serving


def test_a_transaction_that_was_not_committed_left_nothing(server: PostgresServer) -> None:
    """The whole batch or none of it; the next connection keeps it."""
    store = PostgresLedger(server.url, password=PASSWORD)
    store.fold_usage([UsageOpened("r0", "acme", "k", "m", "g0", 10, 50, 1_700_000_000.0)])
    with server.connect() as other, other.transaction():
        other.execute("LOCK TABLE usage IN EXCLUSIVE MODE")
        failed: list[BaseException] = []

        def fold() -> None:
            try:
                store.fold_usage([UsageOpened(f"r{i}", "acme", "k", "m", "g0", 10, 50, 0.0) for i in range(1, 50)])
            except LedgerAway as error:
                failed.append(error)

        folding = threading.Thread(target=fold)
        folding.start()
        server.kill()
        folding.join(20)
        assert failed
        other.close()
    server.start()
    assert store.unsettled() == 1
    store.fold_usage([UsageOpened("r1", "acme", "k", "m", "g0", 10, 50, 0.0)])
    assert store.unsettled() == 2
    store.close()


def test_a_schema_from_the_future_is_left_alone(server: PostgresServer) -> None:
    """An older ledger says so, and writes nothing."""
    store = PostgresLedger(server.url, password=PASSWORD)
    store.ping()
    store.close()
    with server.connect() as other:
        other.execute("UPDATE ledger_schema SET version = 99")
    with pytest.raises(LedgerAway, match="version 99"):
        store.ping()


def test_a_wrong_password_is_told_and_not_repeated(server: PostgresServer, tmp_path: Path) -> None:
    """As everything that the database refuses: it is away, with its own words."""
    with pytest.raises(LedgerAway, match="password authentication failed") as told:
        PostgresLedger(server.url, password="a-wrong-one").ping()
    assert "a-wrong-one" not in str(told.value)


async def test_a_lost_database_is_rebuilt_from_the_streams(server: PostgresServer, connect: Connect) -> None:
    """Without its consumers the ledger begins at the first record that is kept."""
    node, gateway, admin = await connect("ledger", "l0"), await connect("gateway", "g0"), await connect("admin")
    serving = await serve(node, ledger(server))
    await write(gateway, range(10))
    await counted(gateway, 10)
    await node.drain(5.0)
    await serving
    server.empty()
    assert isinstance(admin.transport, NatsTransport)
    for stream in ("usage", "audit"):
        await admin.transport.js.delete_consumer(stream, "ledger")
    again = await connect("ledger", "l0")
    serving = await serve(again, ledger(server))
    await counted(gateway, 10)
    await again.drain(5.0)
    await serving
