"""A whole stack on one machine: nats-server, then the roles, under one supervisor, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import msgspec
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from actors.addresses import instance_of
from actors.runtime import Context, NatsTransport, Node
from actors.runtime.heartbeat import Alive
from gateway.secrets import BadSecret, load_secrets
from headgate.errors import HeadgateError
from headgate.nats import NatsServer, NatsServerError, provision
from headgate.settings import ROLES, Settings
from headgate.supervisor import STATE_FILE, Child, Supervisor

__all__ = ["ENDPOINTS_FILE", "serve_stack"]

ENDPOINTS_FILE = "endpoints.json"
_LOG_BYTES = 16 * 2**20
#: So often may a role end before the stack is ready.
_RESTARTS_AT_START = 3
#: After a failed start of nats-server.
_NATS_AGAIN_S = 1.0


async def serve_stack(settings: Settings, *, as_json: bool = False) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code. Once ready, prints the addresses, `as_json` in one line.

    :raises HeadgateError: what is asked for cannot be started, or another stack runs in the same directory.
    """
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    settings = _with_ports(settings)
    _check(settings)
    data = settings.data_dir
    try:
        load_secrets(data)
    except BadSecret as error:
        raise HeadgateError(str(error)) from error
    nats = None if settings.nats else NatsServer(data / "nats")
    if nats is not None:
        await nats.start()
    try:
        return await _serve(settings, nats, stop, as_json=as_json)
    finally:
        if nats is not None:
            await nats.stop()
        (data / ENDPOINTS_FILE).unlink(missing_ok=True)


async def _serve(settings: Settings, nats: NatsServer | None, stop: asyncio.Event, *, as_json: bool) -> int:
    admin_url = nats.url("admin") if nats else settings.nats
    if not await _before(stop, provision(admin_url)):
        return 0
    supervisor = Supervisor(settings.data_dir / STATE_FILE, info={"model": settings.name, "data": settings.data})
    node = await Node.connect(NatsTransport(admin_url), role="admin", instance=f"supervisor-{os.getpid()}")
    keeping = asyncio.create_task(_keep_nats(nats, supervisor), name="keep-nats") if nats else None
    try:
        with _progress() as progress:
            await _follow(node, supervisor, progress)
            for role, instance in _instances(settings):
                supervisor.add(_child(settings, nats, role, instance))
            await _ready(settings, supervisor, stop)
        if not stop.is_set():
            _announce(settings, as_json=as_json)
            await stop.wait()
        return 0
    finally:
        await supervisor.stop()
        await node.close()
        if keeping is not None:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping


async def _before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether it was done before we were told to stop: a server that is not there is waited for."""
    working = asyncio.create_task(work, name="provision")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
        return working.done()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _keep_nats(nats: NatsServer, supervisor: Supervisor) -> None:
    """Start nats-server again, on the same port and store, whenever it dies, until it starts."""
    log = structlog.get_logger()
    while True:
        supervisor.note("nats", "n0", pid=nats.pid or 0, state="ready")
        await nats.wait()
        supervisor.note("nats", "n0", pid=0, state="restarting")
        while nats.pid is None:
            try:
                await nats.start()
            except NatsServerError as error:
                log.error("nats-server does not start", error=str(error))
                await asyncio.sleep(_NATS_AGAIN_S)


def _with_ports(settings: Settings) -> Settings:
    """Ports are fixed here, so that a gateway that is restarted comes back at the same address."""
    return msgspec.structs.replace(
        settings, port=settings.port or _free_port(), admin_port=settings.admin_port or _free_port()
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check(settings: Settings) -> None:
    """Refuse early what would fail late."""
    _ = settings.policies
    data = settings.data_dir
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (data / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise HeadgateError(f"--data {data} cannot be made: {error.strerror}") from error
    with contextlib.suppress(OSError, ValueError, KeyError):
        pid = json.loads((data / STATE_FILE).read_text())["supervisor_pid"]
        os.kill(pid, 0)
        raise HeadgateError(f"a stack runs in {data} already (process {pid}): stop it, or give another --data")
    if not (Path(settings.model) / "config.json").exists():
        raise HeadgateError(
            f"--model {settings.model} has no config.json: give a model directory in Hugging Face format"
        )
    for port in (settings.port, settings.admin_port):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                raise HeadgateError(f"port {port} on {settings.host} cannot be used: {error.strerror}") from None


def _instances(settings: Settings) -> list[tuple[str, str]]:
    names = {"ledger": ["l0"], "admission": ["a0"], "scheduler": [instance_of(settings.name)], "gateway": ["g0"]}
    names["worker"] = [f"w{i}" for i in range(settings.workers)]
    return [(role, instance) for role in ROLES for instance in names[role]]


def _child(settings: Settings, nats: NatsServer | None, role: str, instance: str) -> Child:
    threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
    own = msgspec.structs.replace(settings, threads=threads)
    if nats is not None:
        own = msgspec.structs.replace(own, nats=nats.url(role), nats_monitor=nats.monitor_url)
    log = settings.data_dir / "logs" / f"{role}.{instance}.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    # -P: our packages have names that folders of where we are started may have too.
    command = [sys.executable, "-P", "-m", "headgate", "run", role, "--instance", instance]
    return Child(role, instance, command, own.to_environment(), log)


def _progress() -> Progress:
    bar = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    return Progress(*bar, console=Console(stderr=True), transient=True)


async def _follow(node: Node, supervisor: Supervisor, progress: Progress) -> None:
    """Hear the heartbeats of all roles: what `ps` shows, and how far weights are loaded."""
    bars: dict[str, TaskID] = {}

    def follower(role: str) -> Callable[[Alive, Context], None]:
        def heard(alive: Alive, ctx: Context) -> None:
            info = alive.info
            state = str(info.get("state", "ready"))
            supervisor.heard(role, alive.instance, pid=int(info.get("pid", 0)), epoch=alive.epoch, state=state)
            if ("loaded" in info and not progress.finished) or alive.instance in bars:
                if alive.instance not in bars:
                    bars[alive.instance] = progress.add_task(f"loading weights of {role} {alive.instance}", total=1.0)
                progress.update(bars[alive.instance], completed=float(info.get("loaded", 1.0)))

        return heard

    for role in ROLES:
        await node.subscribe(role, Alive, follower(role))


async def _ready(settings: Settings, supervisor: Supervisor, stop: asyncio.Event) -> None:
    """Wait until the gateway says so. :raises HeadgateError: a role does not stay up."""
    async with httpx.AsyncClient() as client:
        while not stop.is_set():
            for child in supervisor.children.values():
                if child.restarts >= _RESTARTS_AT_START:
                    raise HeadgateError(f"{child.name} does not start: {_last_words(child.log)}")
            with contextlib.suppress(httpx.HTTPError):
                answer = await client.get(f"{_url(settings, settings.port)}/ready", timeout=1.0)
                if answer.status_code == 200:
                    return
            await asyncio.sleep(0.05)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-12:]
    return "\n  ".join([f"the end of {log}:", *lines])


def _url(settings: Settings, port: int) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"http://{host}:{port}"


def _announce(settings: Settings, *, as_json: bool) -> None:
    api, admin = _url(settings, settings.port), _url(settings, settings.admin_port)
    endpoints = settings.data_dir / ENDPOINTS_FILE
    addresses = json.dumps({"api": api, "admin": admin, "model": settings.name})
    endpoints.write_text(addresses)
    if as_json:
        print(addresses, flush=True)
        return
    print(f"Headgate serves {settings.name}")
    print(f"  OpenAI API  {api}/v1")
    print(f"  admin API   {admin}/admin/v1  (key in {settings.data_dir / 'admin.key'})")
    print(f"  metrics     {api}/metrics")
    print(f"  logs        {settings.data_dir / 'logs'}", flush=True)
