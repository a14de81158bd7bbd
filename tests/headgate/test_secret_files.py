"""The secret files of a stack in containers: what is made, what is kept, and what a real nats-server makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner

from actors.runtime import LEASE_TTL_S, Forbidden, Lease, NatsTransport, Node, StoreUnavailable
from gateway.secrets import load_secrets
from headgate.__main__ import main
from headgate.nats import PERMISSIONS, find_binary, open_transport, provision

T = TypeVar("T")

NAMES = {
    "admin-key",
    "pepper",
    "cache-salt",
    "postgres-password",
    "grafana-password",
    "nats.conf",
    *(f"nats-{role}" for role in PERMISSIONS),
}


def secrets(*arguments: str, code: int = 0) -> str:
    """Run it; what it printed."""
    result = CliRunner().invoke(main, ["secrets", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.asynccontextmanager
async def running(*commands: list[str]) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    null = subprocess.DEVNULL
    processes = [await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()


def test_init_makes_everything_private_and_prints_no_secret(tmp_path: Path) -> None:
    """A file of 0600 each in a directory of 0700; names are printed, values never."""
    directory = tmp_path / "secrets"
    printed = secrets("init", "--dir", str(directory))
    assert {path.name for path in directory.iterdir()} == NAMES
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name in printed
        assert path.name == "nats.conf" or path.read_text().strip() not in printed


def test_init_again_overwrites_nothing_and_makes_what_is_missing(tmp_path: Path) -> None:
    """Also where all are there but one."""
    secrets("init", "--dir", str(tmp_path))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    (tmp_path / "grafana-password").unlink()
    printed = secrets("init", "--dir", str(tmp_path))
    assert [line.split()[0] for line in printed.splitlines()].count("made") == 1
    after = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert after.pop("grafana-password") != before.pop("grafana-password")
    assert after == before


def test_a_config_that_differs_is_kept_and_told(tmp_path: Path) -> None:
    """After an upgrade that changed permissions, for one; `rotate nats.conf` writes it."""
    secrets("init", "--dir", str(tmp_path))
    ours = (tmp_path / "nats.conf").read_text()
    (tmp_path / "nats.conf").write_text("{}")
    assert "rotate" in secrets("init", "--dir", str(tmp_path))
    assert (tmp_path / "nats.conf").read_text() == "{}"
    secrets("rotate", "--dir", str(tmp_path), "nats.conf")
    assert (tmp_path / "nats.conf").read_text() == ours


def test_rotating_a_nats_password_rotates_it_in_the_config(tmp_path: Path) -> None:
    """And nothing else."""
    secrets("init", "--dir", str(tmp_path))
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    secrets("rotate", "--dir", str(tmp_path), "nats-worker")
    after = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {name for name in NAMES if after[name] != before[name]} == {"nats-worker", "nats.conf"}
    users = {user["user"]: user["password"] for user in json.loads(after["nats.conf"])["authorization"]["users"]}
    assert users["worker"] == after["nats-worker"].strip()
    assert users["gateway"] == before["nats-gateway"].strip()


def test_a_secret_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    """Exit code 1, one line."""
    secrets("init", "--dir", str(tmp_path))
    assert "pepper" in secrets("rotate", "--dir", str(tmp_path), "salt", code=1)
    assert "different host names" in secrets("init", "--dir", str(tmp_path), "--cluster", "n1", code=2)


def test_a_secret_that_cannot_be_written_is_one_line_and_leaves_no_draft(tmp_path: Path) -> None:
    """Nor does a password change that `nats.conf` could not be told of."""
    (tmp_path / "file").write_text("")
    assert "cannot be made: Not a directory" in secrets("init", "--dir", str(tmp_path / "file" / "sub"), code=1)
    assert "cannot be written" in secrets("rotate", "--dir", str(tmp_path / "nowhere"), "pepper", code=1)
    directory = tmp_path / "secrets"
    secrets("init", "--dir", str(directory))
    before = (directory / "nats-ledger").read_text()
    (directory / "nats-worker").unlink()
    assert "nats-worker cannot be read" in secrets("rotate", "--dir", str(directory), "nats-ledger", code=1)
    assert (directory / "nats-ledger").read_text() == before
    (directory / "pepper").unlink()
    (directory / "pepper").mkdir()
    assert "pepper cannot be written" in secrets("rotate", "--dir", str(directory), "pepper", code=1)
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize("nodes", ["a", "a,a", "a b,c d", "nats://a,nats://b"])
def test_a_cluster_is_made_of_different_host_names(tmp_path: Path, nodes: str) -> None:
    """What is none is a wrong command line, and nothing is made."""
    assert repr(nodes) in secrets("init", "--dir", str(tmp_path / "secrets"), "--cluster", nodes, code=2)
    assert not (tmp_path / "secrets").exists()


def test_a_gateway_takes_its_secrets_from_the_files(tmp_path: Path) -> None:
    """They are as strong as it asks for, and come before what is in the data directory."""
    secrets("init", "--dir", str(tmp_path / "secrets"))
    names = {"ADMIN_KEY": "admin-key", "PEPPER": "pepper", "CACHE_SALT": "cache-salt"}
    environ = {f"HEADGATE_{variable}_FILE": str(tmp_path / "secrets" / name) for variable, name in names.items()}
    found = load_secrets(tmp_path / "data", environ=environ)
    assert found.admin_key == (tmp_path / "secrets" / "admin-key").read_text().strip()
    assert found.pepper != found.cache_salt
    assert not (tmp_path / "data").exists()


async def test_a_nats_server_takes_the_config_and_knows_every_role(tmp_path: Path) -> None:
    """Each role gets in by its own file, and by no other's; `admin` makes the buckets."""
    secrets("init", "--dir", str(tmp_path))
    port, monitor = free_ports(2)
    config = json.loads((tmp_path / "nats.conf").read_text())
    config["jetstream"]["store_dir"] = str(tmp_path / "store")
    (tmp_path / "here.conf").write_text(json.dumps(config))
    command = [find_binary(), "-c", str(tmp_path / "here.conf"), "-a", "127.0.0.1", "-p", str(port)]
    async with running([*command, "-m", str(monitor)]):
        url = f"127.0.0.1:{port}"
        password = (tmp_path / "nats-admin").read_text().strip()
        await provision(f"nats://admin@{url}", password=password, timeout_s=10)
        for role in PERMISSIONS:
            password = (tmp_path / f"nats-{role}").read_text().strip()
            transport = open_transport(f"nats://{role}@{url}", password=password, on_stale=lambda: None)
            await transport.open(role=role, instance="x0")
            await transport.close()
            other = "admin" if role == "worker" else "worker"
            stranger = open_transport(f"nats://{other}@{url}", password=password, on_stale=lambda: None)
            with pytest.raises(Forbidden):
                await stranger.open(role=other, instance="x0")


async def test_three_servers_are_one_cluster_that_keeps_everything_three_times(tmp_path: Path) -> None:
    """Provisioning waits for a leader, and adds replicas to what exists; the death of a server costs nobody a lease."""
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    secrets("init", "--dir", str(tmp_path), "--cluster", ",".join(hosts))
    config = json.loads((tmp_path / "nats.conf").read_text())
    (cluster_port,) = free_ports(1)
    port, *monitors = free_ports(4)
    config["cluster"]["routes"] = [route.replace(":6222", f":{cluster_port}") for route in config["cluster"]["routes"]]
    del config["http"]
    commands = []
    for host, monitor in zip(hosts, monitors, strict=True):
        own = {
            **config,
            "cluster": {**config["cluster"], "listen": f"{host}:{cluster_port}"},
            "jetstream": {**config["jetstream"], "store_dir": str(tmp_path / f"store-{host}")},
        }
        path = tmp_path / f"{host}.conf"
        path.write_text(json.dumps(own))
        command = [find_binary(), "-c", str(path), "--name", f"n-{host}", "-a", host, "-p", str(port)]
        commands.append([*command, "-m", str(monitor)])
    async with running(*commands) as servers:
        url = ",".join(f"nats://admin@{host}:{port}" for host in hosts)
        password = (tmp_path / "nats-admin").read_text().strip()
        await provision(url, password=password, replicas=1, timeout_s=60)
        await provision(url, password=password, replicas=3, timeout_s=60)
        transport = open_transport(url, password=password, on_stale=lambda: None)
        await transport.open(role="admin", instance="x0")
        try:
            for name in ("KV_leases", "KV_tenants", "KV_keys", "usage", "audit"):
                info = await transport.js.stream_info(name)
                assert info.config.num_replicas == 3
            await tried(lambda: _written(transport))
            leases = (await transport.js.stream_info("KV_leases")).cluster
            led_by = leases.leader if leases else None
            dead = next(server for server, host in zip(servers, hosts, strict=True) if led_by == f"n-{host}")
            await _keeps_its_lease(url.replace("admin@", "worker@"), tmp_path / "nats-worker", without=dead)
            assert await tried(lambda: _read(transport)) == b"1"
        finally:
            await transport.close()


async def _keeps_its_lease(url: str, password: Path, *, without: asyncio.subprocess.Process) -> None:
    """The server that leads the leases dies: until another is elected none is renewed, and none is lost."""
    transport = open_transport(url, password=password.read_text().strip(), on_stale=lambda: None)
    async with await Node.connect(transport, role="worker", instance="w0") as node:
        lease = Lease(node, "worker.w0", "w0", ttl_s=LEASE_TTL_S)
        await lease.acquire()
        bucket = await transport.bucket("leases")
        keeping = asyncio.create_task(lease.keep())
        os.kill(without.pid, signal.SIGKILL)
        await without.wait()

        async def revision() -> int:
            entry = await bucket.get("worker.w0")
            return entry.revision if entry else 0

        before = await tried(revision)
        async with asyncio.timeout(20):
            while await tried(revision) == before:
                assert not keeping.done(), keeping.exception()
                await asyncio.sleep(0.1)
        assert lease.is_held
        keeping.cancel()


async def tried(operation: Callable[[], Awaitable[T]]) -> T:
    """Again, until a majority has elected who answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await operation()
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def _written(transport: NatsTransport) -> int:
    return await (await transport.bucket("tenants")).put("acme", b"1")


async def _read(transport: NatsTransport) -> bytes | None:
    entry = await (await transport.bucket("tenants")).get("acme")
    return entry and entry.value
