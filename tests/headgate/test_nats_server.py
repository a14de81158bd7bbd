"""The nats-server child: its life, its files, and who may say what."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from actors.runtime import Forbidden, NatsTransport
from headgate.nats import PERMISSIONS, NatsServer, NatsServerError, provision


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.stop()


@contextlib.asynccontextmanager
async def joined(server: NatsServer, role: str, instance: str = "x0") -> AsyncIterator[NatsTransport]:
    transport = NatsTransport(server.url(role), on_stale=lambda: None)
    await transport.open(role=role, instance=instance)
    try:
        yield transport
    finally:
        await transport.close()


async def test_it_starts_healthy_and_stops(server: NatsServer) -> None:
    """After `start` it answers, with JetStream on disk and our limits; after `stop` the process is gone."""
    pid = server.pid
    assert pid is not None
    async with httpx.AsyncClient(trust_env=False) as http:
        varz = (await http.get(f"{server.monitor_url}/varz")).json()
    assert varz["max_payload"] == 8 * 1024 * 1024
    assert varz["host"] == "127.0.0.1"
    assert varz["jetstream"]["config"]["store_dir"].startswith(str(server.log_path.parent))
    await server.stop()
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_its_files_are_private(server: NatsServer, tmp_path: Path) -> None:
    """Passwords are readable by the owner alone."""
    for name in ("nats.conf", "nats-passwords.json"):
        assert stat.S_IMODE((tmp_path / "nats" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700
    passwords = {server.password(role) for role in PERMISSIONS}
    assert len(passwords) == len(PERMISSIONS)
    assert min(map(len, passwords)) >= 32


async def test_it_comes_back_after_a_kill_on_the_same_port_and_store(server: NatsServer) -> None:
    """kill -9, `start`: the same URL, and what was in the buckets is there."""
    url = server.url("admin")
    await provision(url)
    async with joined(server, "admin") as admin:
        await (await admin.bucket("tenants")).put("acme", b"1")
        server.kill()
        assert await server.wait() == -signal.SIGKILL
        assert server.pid is None
        await server.start()
        assert server.url("admin") == url
    async with joined(server, "admin") as admin:
        entry = await (await admin.bucket("tenants")).get("acme")
    assert entry is not None
    assert entry.value == b"1"


async def test_a_successor_ends_the_orphan_of_a_killed_supervisor(server: NatsServer, tmp_path: Path) -> None:
    """Two servers must never share a store: a new one on the same directory ends the old one first."""
    orphan = server.pid
    assert orphan is not None
    successor = NatsServer(tmp_path / "nats")
    await successor.start()
    try:
        assert await asyncio.wait_for(server.wait(), 5) == -signal.SIGKILL
        assert successor.pid not in (None, orphan)
        assert successor.password("admin") == server.password("admin")
    finally:
        await successor.stop()


async def test_a_server_that_cannot_start_says_why(server: NatsServer, tmp_path: Path) -> None:
    """The error carries the last words of the log."""
    second = NatsServer(tmp_path / "second", port=server.port)
    with pytest.raises(NatsServerError, match="address already in use"):
        await second.start()
    assert second.pid is None


async def test_provisioning_twice_is_harmless(server: NatsServer) -> None:
    """Buckets and streams that exist are left as they are."""
    await provision(server.url("admin"))
    async with joined(server, "admin") as admin:
        await (await admin.bucket("keys")).put("k", b"v")
    await provision(server.url("admin"))
    async with joined(server, "admin") as admin:
        assert await (await admin.bucket("keys")).keys() == ["k"]


async def test_without_a_password_nobody_gets_in(server: NatsServer) -> None:
    """Unknown users, wrong and missing passwords are refused."""
    good = server.url("worker")
    for url in (
        good.replace(server.password("worker"), "wrong"),
        f"nats://127.0.0.1:{server.port}",
        f"nats://nobody:x@127.0.0.1:{server.port}",
    ):
        transport = NatsTransport(url, on_stale=lambda: None)
        with pytest.raises(Forbidden):
            await asyncio.wait_for(transport.open(role="worker", instance="w0"), 5)


@pytest.mark.parametrize(
    ("role", "subject", "is_allowed"),
    [
        ("gateway", "hg.v1.admission.any", True),
        ("gateway", "hg.v1.scheduler.tiny", True),
        ("gateway", "hg.v1.worker.w0", False),
        ("admission", "hg.v1.scheduler.tiny", True),
        ("admission", "hg.v1.worker.w0", False),
        ("scheduler", "hg.v1.worker.w0", True),
        ("scheduler", "hg.v1.gateway.g0", True),
        ("worker", "hg.v1.gateway.g0", True),
        ("worker", "hg.v1.scheduler.tiny", True),
        ("worker", "hg.v1.bus.worker", True),
        ("worker", "hg.v1.bus.scheduler", False),
        ("worker", "hg.v1.bus.control", False),
        ("worker", "hg.v1.admission.any", False),
        ("worker", "hg.v1.worker.w1", False),
        ("worker", "hg.v1.ledger.any", False),
        ("worker", "hg.usage.acme", False),
        ("worker", "$KV.tenants.acme", False),
        ("worker", "$KV.leases.scheduler.tiny", False),
        ("worker", "$JS.API.STREAM.DELETE.KV_leases", False),
        ("worker", "$JS.API.STREAM.PURGE.usage", False),
        ("worker", "$SYS.REQ.SERVER.PING", False),
        ("worker", "_R.admission.a0.x", False),
        ("admission", "$KV.keys.x", False),
        ("ledger", "hg.v1.worker.w0", False),
        ("ledger", "$KV.tenants.acme", False),
        ("scheduler", "$KV.tenants.acme", False),
        ("gateway", "$JS.API.STREAM.DELETE.usage", False),
    ],
)
async def test_a_role_may_publish_what_it_needs_and_nothing_else(
    server: NatsServer, role: str, subject: str, is_allowed: bool
) -> None:
    """Deny by default, enforced by the server."""
    async with joined(server, role) as transport:
        refused: list[str] = []
        transport.on_forbidden(refused.append)
        await transport.publish(subject, b"")
        await transport.flush()
        assert (refused == []) is is_allowed


@pytest.mark.parametrize("role", sorted(PERMISSIONS))
async def test_no_role_hears_what_is_meant_for_another(server: NatsServer, role: str) -> None:
    """Nobody but the addressee subscribes to a role's messages or replies; everybody hears the bus."""
    async with joined(server, role) as transport:
        await transport.subscribe(f"hg.v1.{role}.x0", lambda *delivered: None)
        await transport.subscribe(f"hg.v1.{role}.any", lambda *delivered: None, queue=role)
        await transport.subscribe("hg.v1.bus.>", lambda *delivered: None)
        for other in sorted(PERMISSIONS.keys() - {role}):
            for subject in (f"hg.v1.{other}.*", f"_R.{other}.>", f"_R.{other}.x0.*"):
                with pytest.raises(Forbidden):
                    await transport.subscribe(subject, lambda *delivered: None)
        for subject in (">", "hg.>", "$KV.>", "$JS.>", "hg.usage.>"):
            with pytest.raises(Forbidden):
                await transport.subscribe(subject, lambda *delivered: None)


async def test_every_role_can_hold_its_lease(server: NatsServer) -> None:
    """Leases under the role's own name can be taken, renewed and released."""
    await provision(server.url("admin"))
    for role in PERMISSIONS:
        async with joined(server, role) as transport:
            bucket = await transport.bucket("leases")
            revision = await bucket.create(f"{role}.x0", b"1")
            revision = await bucket.update(f"{role}.x0", b"2", revision)
            assert await bucket.get(f"{role}.x0") == (b"2", revision)
            await bucket.delete(f"{role}.x0", revision)


async def test_gateway_and_admission_follow_the_tenants(server: NatsServer) -> None:
    """Both read and watch; the gateway alone writes."""
    await provision(server.url("admin"))
    async with joined(server, "gateway") as gateway, joined(server, "admission") as admission:
        changes: asyncio.Queue[tuple[str, bytes | None]] = asyncio.Queue()
        tenants = await admission.bucket("tenants")
        watch = await tenants.watch(lambda *change: changes.put_nowait(change))
        await (await gateway.bucket("tenants")).put("acme", b"1")
        assert await asyncio.wait_for(changes.get(), 5) == ("acme", b"1")
        assert await tenants.keys() == ["acme"]
        with pytest.raises(Forbidden):
            await tenants.put("acme", b"2")
        await gateway.append("hg.audit.acme", b"{}", message_id="1")
        await watch.close()
