"""What bites in nats-py, item by item of docs/actors-runtime.md: what our wrapper does about it, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import uvloop
from nats_fixtures import Connect, Link, restart, serve, until
from runtime_stage import CountTo, Do, Doer, Done, Note, Refuse

from actors.runtime import (
    Actor,
    Busy,
    Context,
    Crashed,
    DeadlineExceeded,
    Disconnected,
    Failed,
    Forbidden,
    Message,
    MessageTooLarge,
    NatsTransport,
    Node,
    NoRoute,
    handles,
)
from headgate.nats import NatsServer


class Blob(Message, frozen=True, tag="blob"):
    data: bytes


class Weigher(Actor):
    """Says how much it was sent."""

    role = "scheduler"

    @handles
    async def blob(self, msg: Blob, ctx: Context) -> Done:
        return Done(len(msg.data))


class Scheduler(Doer):
    role = "scheduler"


async def test_everything_that_works_in_memory_works_over_nats(connect: Connect) -> None:
    """Ask, refuse, crash, time out, overflow, stream: the same contract on the real transport."""
    scheduler, gateway = await connect("scheduler", "s0"), await connect("gateway", "g0")
    doer = Scheduler()
    serving = await serve(scheduler, doer)
    assert await gateway.ask("scheduler.any", Do(1), want=Done) == Done(1)
    with pytest.raises(Failed, match="no-thanks"):
        await gateway.ask("scheduler.s0", Refuse(), want=Done)
    with pytest.raises(DeadlineExceeded):
        await gateway.ask("scheduler.s0", Do(2, 60.0), want=Done, timeout_s=0.1)
    replies = await asyncio.gather(
        *(gateway.ask("scheduler.s0", Do(n, 0.05), want=Done) for n in range(10)), return_exceptions=True
    )
    assert sum(isinstance(reply, Busy) for reply in replies) in (5, 6)
    assert sum(isinstance(reply, Done) for reply in replies) in (5, 4)
    assert [item.n async for item in gateway.stream("scheduler.any", CountTo(300), want=Done, window=8)] == list(
        range(1, 301)
    )
    async for item in gateway.stream("scheduler.s0", CountTo(1000, 0.001), want=Done):
        if item.n == 3:
            break
    # It stops long before its end; how many it sent ahead of the reader is a matter of timing.
    await until(lambda: any(f"streamed {n}" in doer.diary for n in range(3, 300)))
    with pytest.raises(Crashed):
        async for _ in gateway.stream("scheduler.s0", CountTo(3, crash_at=2), want=Done):
            pass
    with pytest.raises(RuntimeError, match="as told"):
        await serving


def test_it_works_on_uvloop_too(tmp_path: Path) -> None:
    """The loop that the processes run on: asks, streams, cancellation, a restart of the server and a drain."""

    async def main() -> None:
        server = NatsServer(tmp_path / "nats")
        await server.start()
        transports = [NatsTransport(server.url(role)) for role in ("scheduler", "gateway")]
        async with (
            await Node.connect(transports[0], role="scheduler", instance="s0") as scheduler,
            await Node.connect(transports[1], role="gateway", instance="g0") as gateway,
        ):
            doer = Scheduler()
            serving = await serve(scheduler, doer)
            assert await gateway.ask("scheduler.any", Do(1), want=Done) == Done(1)
            got = [item.n async for item in gateway.stream("scheduler.any", CountTo(100), want=Done, window=8)]
            assert got == list(range(1, 101))
            asking = asyncio.create_task(gateway.ask("scheduler.s0", Do(2, 60.0), want=Done))
            await until(lambda: doer.at_once == 1)
            asking.cancel()
            await until(lambda: "cancelled 2" in doer.diary)
            await restart(server)
            await until(lambda: all(transport.is_connected for transport in transports))
            await asyncio.gather(scheduler.flush(), gateway.flush())
            assert await gateway.ask("scheduler.s0", Do(3), want=Done) == Done(3)
            await scheduler.drain(1.0)
            await serving
        await server.stop()

    uvloop.run(main())


async def test_1_a_message_too_large_costs_an_error_not_the_connection(connect: Connect) -> None:
    """The server would close the connection for good; we refuse to send, and the node goes on."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    serving = await serve(scheduler, Weigher())
    for size in (4 * 1024 * 1024, 9 * 1024 * 1024):
        with pytest.raises(MessageTooLarge):
            await gateway.ask("scheduler.0", Blob(b"x" * size), want=Done)
    largest = 4 * 1024 * 1024 - 200
    assert await gateway.ask("scheduler.0", Blob(b"x" * largest), want=Done) == Done(largest)
    await scheduler.drain(1.0)
    await serving


async def test_1_the_cap_follows_the_limit_of_the_server(tmp_path: Any) -> None:
    """A default server takes 1 MiB, headers included: there the cap is half of it."""
    server = _PlainServer(tmp_path)
    await server.start()
    try:
        node = await Node.connect(NatsTransport(f"nats://127.0.0.1:{server.port}"), role="a", instance="b")
        async with node:
            assert node.transport.max_message_bytes == 512 * 1024
            with pytest.raises(MessageTooLarge):
                await node.tell("a.c", Blob(b"x" * 512 * 1024))
    finally:
        await server.stop()


async def test_2_a_cancelled_publish_is_cancelled(connect: Connect, link: Link, nats_server: NatsServer) -> None:
    """nats-py swallows the cancellation of a publish that waits for a stuck link; ours ends the task."""
    gateway = await connect("gateway", url=link.url(nats_server, "gateway"))
    link.hold()
    blob = Blob(b"x" * 200_000)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await gateway.tell("scheduler.0", blob)
            sent += 1

    task = asyncio.create_task(flood())
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task}, timeout=0.5)
    assert task.cancelled()
    link.resume()


async def test_2_a_stuck_link_delays_a_publish_by_two_seconds_at_most(
    connect: Connect, link: Link, nats_server: NatsServer
) -> None:
    """A forced flush gives up instead of hanging for ever."""
    gateway = await connect("gateway", url=link.url(nats_server, "gateway"))
    loop = asyncio.get_running_loop()
    link.hold()
    longest = 0.0
    async with asyncio.timeout(20):
        while longest < 1.0:
            started = loop.time()
            await gateway.tell("scheduler.0", Blob(b"x" * 300_000))
            longest = max(longest, loop.time() - started)
    assert longest < 3.0
    link.resume()


async def test_3_closing_while_reconnecting_is_quiet_and_quick(connect: Connect, nats_server: NatsServer) -> None:
    """With data buffered for a server that is gone, close neither raises nor hangs."""
    gateway = await connect("gateway", on_stale=lambda: None)
    nats_server.kill()
    await nats_server.wait()
    await until(lambda: not gateway.transport.is_connected)
    await gateway.tell("scheduler.0", Blob(b"x" * 100_000))
    started = asyncio.get_running_loop().time()
    await gateway.close()
    assert asyncio.get_running_loop().time() - started < 5
    with pytest.raises(Disconnected):
        await gateway.transport.publish("hg.v1.scheduler.0", b"")


async def test_4_no_reply_is_lost_by_unsubscribing(connect: Connect) -> None:
    """We never use a message limit: a slow reader of a stream gets all of it, and subscriptions end when we say so."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    serving = await serve(scheduler, Scheduler())
    got = []
    async for item in gateway.stream("scheduler.0", CountTo(20), want=Done, window=20):
        await asyncio.sleep(0.002)
        got.append(item.n)
    assert got == list(range(1, 21))
    await scheduler.drain(1.0)
    await serving


async def test_5_a_watch_survives_a_restart_of_the_server(connect: Connect, nats_server: NatsServer) -> None:
    """It is made anew: puts and deletes after the restart are told, and nothing is told twice."""
    gateway, admin = await connect("gateway"), await connect("admin")
    bucket = await admin.transport.bucket("tenants")
    await bucket.put("acme", b"1")
    await bucket.put("gone", b"1")
    told: list[tuple[str, bytes | None]] = []
    watch = await (await gateway.transport.bucket("tenants")).watch(lambda *change: told.append(change))
    assert told == [("acme", b"1"), ("gone", b"1")]
    await bucket.put("acme", b"2")
    await until(lambda: len(told) == 3)
    await restart(nats_server)
    await until(lambda: admin.transport.is_connected)
    await bucket.put("acme", b"3")
    await bucket.delete("gone")
    await until(lambda: len(told) == 5)
    assert told[2:] == [("acme", b"2"), ("acme", b"3"), ("gone", None)]
    await watch.close()


async def test_5_a_watch_that_went_silent_is_noticed(connect: Connect, nats_server: NatsServer) -> None:
    """Without any reconnection to tell, the periodic comparison finds what the watch did not deliver."""
    gateway, admin = await connect("gateway"), await connect("admin")
    bucket = await admin.transport.bucket("tenants")
    told: list[tuple[str, bytes | None]] = []
    watch = await (await gateway.transport.bucket("tenants")).watch(lambda *change: told.append(change))
    assert isinstance(gateway.transport, NatsTransport)
    # What a restart does to it: the consumer on the server is gone, and nobody says so.
    assert isinstance(admin.transport, NatsTransport)
    for consumer in await admin.transport.js.consumers_info("KV_tenants"):
        await admin.transport.js.delete_consumer("KV_tenants", consumer.name)
    await bucket.put("acme", b"1")
    await until(lambda: told == [("acme", b"1")], timeout_s=8)
    await watch.close()


async def test_6_what_a_late_subscriber_misses_is_known(connect: Connect, link: Link, nats_server: NatsServer) -> None:
    """Messages sent while the receiver is away are lost without an error; the next one says how many."""
    scheduler = await connect("scheduler", url=link.url(nats_server, "scheduler"))
    gateway = await connect("gateway")
    doer = Scheduler()
    doer.note_target = 99
    serving = await serve(scheduler, doer)
    await gateway.tell("scheduler.0", Note(0))
    await until(lambda: doer.diary[-1] == 0)
    link.cut()
    await until(lambda: not scheduler.transport.is_connected)
    for n in range(1, 11):
        await gateway.tell("scheduler.0", Note(n))
    await gateway.flush()
    await until(lambda: scheduler.transport.is_connected)
    await scheduler.flush()
    await gateway.tell("scheduler.0", Note(99))
    await asyncio.wait_for(doer.noted.wait(), 5)
    handled = [entry for entry in doer.diary if isinstance(entry, int)]
    assert len(handled) + scheduler.missed == 12
    assert scheduler.missed > 0
    assert doer.contexts[-1].missed == scheduler.missed
    await scheduler.drain(1.0)
    await serving


async def test_7_an_ask_survives_an_outage_of_the_server(connect: Connect, nats_server: NatsServer) -> None:
    """Reconnection goes on for ever and is quick; an ask with time left is answered after it."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    serving = await serve(scheduler, Scheduler())
    nats_server.kill()
    await nats_server.wait()
    await until(lambda: not gateway.transport.is_connected and not scheduler.transport.is_connected)
    await nats_server.start()

    async def ask_until_answered() -> Done:
        while True:
            with contextlib.suppress(NoRoute, DeadlineExceeded):
                return await gateway.ask("scheduler.0", Do(7), want=Done, timeout_s=0.5)
            await asyncio.sleep(0.05)

    assert await asyncio.wait_for(ask_until_answered(), 5) == Done(7)
    assert isinstance(gateway.transport, NatsTransport)
    assert gateway.transport.client.options["max_reconnect_attempts"] == -1
    await scheduler.drain(1.0)
    await serving


async def test_7_a_half_open_link_is_noticed(connect: Connect, link: Link, nats_server: NatsServer) -> None:
    """When no pong comes for the given time the callback is called, though the socket looks healthy."""
    stale = asyncio.Event()
    await connect("gateway", url=link.url(nats_server, "gateway"), stale_after_s=1.0, on_stale=stale.set)
    await asyncio.sleep(1.5)
    assert not stale.is_set()
    started = asyncio.get_running_loop().time()
    link.hold()
    await asyncio.wait_for(stale.wait(), 5)
    assert 0.7 < asyncio.get_running_loop().time() - started < 2.5
    link.resume()


async def test_7_a_server_that_is_stopped_is_noticed(connect: Connect, nats_server: NatsServer) -> None:
    """SIGSTOP leaves every socket open; only the missing pong tells."""
    stale = asyncio.Event()
    await connect("gateway", stale_after_s=1.0, on_stale=stale.set)
    process = nats_server._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.wait_for(stale.wait(), 5)
    finally:
        process.send_signal(signal.SIGCONT)


async def test_7_by_default_a_dead_connection_ends_the_process(nats_server: NatsServer) -> None:
    """Exit status 75, for the supervisor to start it again, instead of a process that only looks alive."""
    script = textwrap.dedent("""
        import asyncio, sys
        from actors.runtime import NatsTransport, Node

        async def main():
            transport = NatsTransport(sys.argv[1], stale_after_s=0.5)
            async with await Node.connect(transport, role="gateway", instance="g0"):
                print("ready", flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, nats_server.url("gateway"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
    nats_server.kill()
    assert await asyncio.wait_for(process.wait(), 10) == 75
    process._transport.close()  # type: ignore[attr-defined]


async def test_8_overflow_is_busy_never_silent(connect: Connect) -> None:
    """A burst far beyond the mailbox: every message is handled, or counted and known to be missing."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    doer = Scheduler()
    serving = await serve(scheduler, doer)
    await gateway.tell("scheduler.0", Do(0, 0.3))
    for n in range(1, 2001):
        gateway.tell_soon("scheduler.0", Note(n))
    await gateway.flush()
    await until(lambda: doer.at_once == 0 and 0 in doer.diary)
    doer.note_target = 9999
    await gateway.tell("scheduler.0", Note(9999))
    await asyncio.wait_for(doer.noted.wait(), 5)
    handled = [entry for entry in doer.diary if isinstance(entry, int)]
    assert scheduler.dead_letters["mailbox-full"] > 1900
    assert len(handled) + scheduler.missed == 2002
    await scheduler.drain(1.0)
    await serving


async def test_9_a_handler_that_waits_does_not_hold_up_the_connection(connect: Connect) -> None:
    """Callbacks never wait, so that while a handler does, others are refused, cancelled and answered."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    doer = Scheduler()
    serving = await serve(scheduler, doer)
    slow = asyncio.create_task(gateway.ask("scheduler.0", Do(1, 60.0), want=Done, timeout_s=60))
    await until(lambda: doer.at_once == 1)
    queued = [asyncio.create_task(gateway.ask("scheduler.0", Do(n, 60.0), want=Done)) for n in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await gateway.ask("scheduler.0", Do(9), want=Done, timeout_s=1.0)
    for task in (*queued, slow):
        task.cancel()
    await until(lambda: "cancelled 1" in doer.diary)
    assert await gateway.ask("scheduler.0", Do(2), want=Done, timeout_s=1.0) == Done(2)
    await scheduler.drain(1.0)
    await serving


async def test_10_a_forbidden_ask_fails_at_once(connect: Connect) -> None:
    """The server's complaint is mapped to the ask that waits, which does not time out."""
    worker = await connect("worker", "w0")
    started = worker.clock()
    with pytest.raises(Forbidden):
        await worker.ask("admission.any", Do(1), want=Done, timeout_s=30.0)
    with pytest.raises(Forbidden):
        async for _ in worker.stream("ledger.any", CountTo(1), want=Done, timeout_s=30.0):
            pass
    with pytest.raises(Forbidden):
        await worker.transport.subscribe("hg.v1.admission.any", lambda *delivered: None)
    with pytest.raises(Forbidden):
        await worker.transport.bucket("tenants")
    with pytest.raises(Forbidden):
        await worker.transport.append("hg.usage.x", b"", message_id="1")
    assert worker.clock() - started < 2


async def test_11_revisions_grow_through_kill_and_restart(connect: Connect, nats_server: NatsServer) -> None:
    """Buckets are on disk: after kill -9 the value is there and the next revision is higher."""
    admin = await connect("admin")
    bucket = await admin.transport.bucket("leases")
    first = await bucket.create("k", b"1")
    await restart(nats_server)
    await until(lambda: admin.transport.is_connected)
    entry = await bucket.get("k")
    assert entry == (b"1", first)
    assert await bucket.update("k", b"2", first) > first


async def test_12_no_role_can_read_the_replies_of_another(connect: Connect) -> None:
    """Inboxes are per role and instance, and the server enforces the role."""
    worker, gateway = await connect("worker", "w0"), await connect("gateway", "g0")
    overheard: list[str] = []
    for inbox in ("_R.gateway.>", "_R.gateway.g0.*", "_INBOX.>", ">"):
        with pytest.raises(Forbidden):
            await worker.transport.subscribe(inbox, lambda subject, *rest: overheard.append(subject))
    scheduler = await connect("scheduler", "s0")
    serving = await serve(scheduler, Scheduler())
    assert await gateway.ask("scheduler.s0", Do(1), want=Done) == Done(1)
    assert overheard == []
    assert isinstance(gateway.transport, NatsTransport)
    assert gateway.transport.client.new_inbox().startswith("_R.gateway.g0.")
    await scheduler.drain(1.0)
    await serving


async def test_13_a_cancelled_flush_does_not_make_the_connection_deaf(connect: Connect) -> None:
    """nats-py stops reading when the pong of a cancelled flush comes; ours goes on."""
    scheduler, gateway = await connect("scheduler"), await connect("gateway")
    serving = await serve(scheduler, Scheduler())
    for _ in range(5):
        flushing = asyncio.create_task(gateway.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
    await gateway.flush()
    assert await gateway.ask("scheduler.0", Do(1), want=Done, timeout_s=2.0) == Done(1)
    await scheduler.drain(1.0)
    await serving


async def test_13_a_flush_covers_what_was_sent_before(connect: Connect) -> None:
    """When it returns the server has everything: a subscriber flushes, and misses nothing sent afterwards."""
    gateway, scheduler = await connect("gateway"), await connect("scheduler")
    for n in range(50):
        heard = asyncio.Event()
        await scheduler.transport.subscribe(f"hg.v1.scheduler.x{n}", lambda *delivered, heard=heard: heard.set())
        await gateway.transport.publish(f"hg.v1.scheduler.x{n}", b"")
        await asyncio.wait_for(heard.wait(), 1)


async def test_14_the_first_round_of_a_watch_is_complete(connect: Connect) -> None:
    """nats-py may end it before the first entry is received; ours, and the list of keys, never miss one."""
    admin, gateway = await connect("admin"), await connect("gateway")
    bucket = await admin.transport.bucket("tenants")
    for key in ("a", "b", "c"):
        await bucket.put(key, b"1")
    await bucket.delete("b")
    followed = await gateway.transport.bucket("tenants")
    for _ in range(100):
        assert await followed.keys() == ["a", "c"]
        told: dict[str, bytes | None] = {}
        watch = await followed.watch(told.__setitem__)
        assert told == {"a": b"1", "c": b"1"}
        await watch.close()


async def test_nobody_there_is_no_route_over_nats(connect: Connect) -> None:
    """The server's no-responders answer is `NoRoute`, at once."""
    gateway = await connect("gateway")
    started = gateway.clock()
    with pytest.raises(NoRoute):
        await gateway.ask("scheduler.any", Do(1), want=Done, timeout_s=30.0)
    assert gateway.clock() - started < 1


async def test_without_a_connection_tells_are_bounded(connect: Connect, nats_server: NatsServer) -> None:
    """What does not fit into the small buffer is counted as unsent; an ask says so."""
    gateway = await connect("gateway", on_stale=lambda: None)
    nats_server.kill()
    await nats_server.wait()
    await until(lambda: not gateway.transport.is_connected)
    for _ in range(10):
        await gateway.tell("scheduler.0", Blob(b"x" * 50_000))
    gateway.tell_soon("scheduler.0", Blob(b"x" * 50_000))
    assert gateway.dead_letters["unsent"] == 6
    with pytest.raises(Disconnected):
        await gateway.ask("scheduler.0", Blob(b"x" * 50_000), want=Done)
    await nats_server.start()


class _PlainServer(NatsServer):
    """nats-server with its own defaults."""

    def _config(self) -> str:
        return f'listen: "127.0.0.1:{self.port}"\nhttp: "{self.monitor_url.removeprefix("http://")}"'
