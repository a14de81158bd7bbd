"""Leases, watches and streams on a real server that is killed and comes back on the same store."""

from __future__ import annotations

import asyncio
import signal

import pytest
from nats_fixtures import Connect, restart, until
from runtime_stage import Done, Note

from actors.runtime import Actor, Conflict, Context, Lease, LeaseLost, NatsTransport, Node, Record, handles
from headgate.nats import NatsServer


async def test_a_bucket_reads_and_writes(connect: Connect) -> None:
    """Get, put, create, update, delete, keys: with conflicts where the revision is another."""
    admin = await connect("admin")
    bucket = await admin.transport.bucket("tenants")
    assert await bucket.keys() == []
    assert await bucket.get("acme") is None
    first = await bucket.create("acme", b"1")
    with pytest.raises(Conflict):
        await bucket.create("acme", b"2")
    second = await bucket.update("acme", b"2", first)
    with pytest.raises(Conflict):
        await bucket.update("acme", b"3", first)
    with pytest.raises(Conflict):
        await bucket.delete("acme", first)
    assert await bucket.get("acme") == (b"2", second)
    third = await bucket.put("other", b"x")
    assert first < second < third
    assert await bucket.keys() == ["acme", "other"]
    await bucket.delete("acme", second)
    assert await bucket.get("acme") is None
    assert await bucket.keys() == ["other"]
    assert await bucket.create("acme", b"4") > third


async def test_a_lease_outlives_a_short_absence_of_the_server(connect: Connect, nats_server: NatsServer) -> None:
    """kill -9 and restart within the time to renew: nobody notices, and the epoch stays."""
    scheduler = await connect("scheduler", "s0")
    async with Lease(scheduler, "scheduler.m", "s0", ttl_s=3.0) as lease:
        before = lease.epoch
        await asyncio.sleep(0.5)
        await restart(nats_server)
        await asyncio.sleep(2.5)
        assert lease.is_held
        assert lease.epoch == before
    rival = await connect("scheduler", "s1")
    assert await Lease(rival, "scheduler.m", "s1").acquire() > before


async def test_a_lease_is_lost_when_the_server_stays_away(connect: Connect, nats_server: NatsServer) -> None:
    """The holder gives up by itself, before anybody else could take over, and gets a higher epoch afterwards."""
    worker = await connect("worker", "w0", on_stale=lambda: None)
    lost = Lease(worker, "worker.w0", "w0", ttl_s=0.9)
    with pytest.raises(LeaseLost):  # noqa: PT012
        async with lost:
            nats_server.kill()
            await nats_server.wait()
            await asyncio.sleep(30)
    await nats_server.start()
    assert await asyncio.wait_for(Lease(worker, "worker.w0", "w0").acquire(), 5) > lost.epoch


async def test_a_stolen_lease_is_lost_at_the_next_renewal(connect: Connect) -> None:
    """A write by somebody else ends it."""
    worker, admin = await connect("worker", "w0"), await connect("admin")
    bucket = await admin.transport.bucket("leases")
    with pytest.raises(LeaseLost, match="taken from w0"):  # noqa: PT012
        async with Lease(worker, "worker.w0", "w0", ttl_s=0.9):
            await bucket.put("worker.w0", b'{"holder":"thief","nonce":"","ttl_s":9}')
            await asyncio.sleep(30)


async def test_a_standby_takes_over_from_a_stopped_process(connect: Connect) -> None:
    """Nobody renews: after one ttl the waiting standby holds it, with a higher epoch."""
    first, second = await connect("scheduler", "s0"), await connect("scheduler", "s1")
    dead = Lease(first, "scheduler.m", "s0", ttl_s=0.9)
    await dead.acquire()
    started = second.clock()
    assert await Lease(second, "scheduler.m", "s1", ttl_s=0.9).acquire() > dead.epoch
    assert 0.85 < second.clock() - started < 1.6


async def test_appended_records_are_stored_once_and_survive(connect: Connect, nats_server: NatsServer) -> None:
    """The message id makes a repetition harmless, also across kill -9; what is not acknowledged comes again."""
    gateway, ledger = await connect("gateway"), await connect("ledger")
    assert await gateway.transport.append("hg.usage.acme", b"1", message_id="r1:1") is True
    assert await gateway.transport.append("hg.usage.acme", b"1", message_id="r1:1") is False
    await restart(nats_server)
    await until(lambda: gateway.transport.is_connected and ledger.transport.is_connected)
    assert await gateway.transport.append("hg.usage.acme", b"1", message_id="r1:1") is False
    assert await gateway.transport.append("hg.usage.acme", b"2", message_id="r1:2") is True
    batches = ledger.transport.consume("usage", "ledger", ack_wait_s=1.0)
    got: list[Record] = []
    async with asyncio.timeout(10):
        while len(got) < 2:
            got += await anext(batches)
        assert [record.payload for record in got] == [b"1", b"2"]
        await got[0].ack()
        again = await anext(batches)
    assert [(record.payload, record.deliveries) for record in again] == [(b"2", 2)]
    await again[0].ack()
    await batches.aclose()  # type: ignore[attr-defined]


async def test_a_consumer_goes_on_through_a_restart(connect: Connect, nats_server: NatsServer) -> None:
    """The loop over batches neither ends nor loses: records of before and after are delivered."""
    gateway, ledger = await connect("gateway"), await connect("ledger")
    got: list[bytes] = []

    async def fold() -> None:
        async for batch in ledger.transport.consume("usage", "ledger"):
            for record in batch:
                got.append(record.payload)
                await record.ack()

    folding = asyncio.create_task(fold())
    await gateway.transport.append("hg.usage.acme", b"before", message_id="1")
    await until(lambda: got == [b"before"])
    await restart(nats_server)
    await until(lambda: gateway.transport.is_connected)
    await gateway.transport.append("hg.usage.acme", b"after", message_id="2")
    await until(lambda: got == [b"before", b"after"])
    folding.cancel()
    await asyncio.wait({folding})


async def test_a_paused_server_costs_a_pause(connect: Connect, nats_server: NatsServer) -> None:
    """SIGSTOP for a while: a lease with enough time is kept, and asks are answered afterwards."""

    class Echo(Actor):
        role = "scheduler"

        @handles
        async def note(self, msg: Note, ctx: Context) -> Done:
            return Done(msg.n)

    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    ready = asyncio.Event()
    serving = asyncio.create_task(scheduler.serve(Echo(), ready=ready))
    await asyncio.wait_for(ready.wait(), 5)
    process = nats_server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    asking = asyncio.create_task(gateway.ask("scheduler.0", Note(3), want=Done, timeout_s=5.0))
    await asyncio.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    assert await asking == Done(3)
    await scheduler.drain(1.0)
    await serving


async def test_a_full_write_to_one_bucket_wakes_many_watches(connect: Connect) -> None:
    """Every watcher is told of every key, within a second (a revoked key must not live longer)."""
    admin = await connect("admin")
    bucket = await admin.transport.bucket("keys")
    seen: list[dict[str, bytes | None]] = [{} for _ in range(3)]
    watches = []
    for n in range(3):
        gateway: Node = await connect("gateway", f"g{n}")
        watches.append(await (await gateway.transport.bucket("keys")).watch(seen[n].__setitem__))
    loop = asyncio.get_running_loop()
    started = loop.time()
    for n in range(100):
        await bucket.put(f"key{n}", b"x")
    await bucket.delete("key7")
    await until(lambda: all(len(state) == 100 and state["key7"] is None for state in seen))
    assert loop.time() - started < 1.0
    for watch in watches:
        await watch.close()
    assert isinstance(admin.transport, NatsTransport)
