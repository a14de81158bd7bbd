"""Role processes as an orchestrator starts them: by environment and secret files, each with an ops port, against a
nats-server with a user per role."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from headgate.nats import find_binary
from headgate.secret_files import SecretFiles

_READY_S = 40.0


def free_ports(count: int) -> list[int]:
    """That were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


async def eventually(
    condition: Callable[[], Awaitable[Any]], *, what: str, timeout_s: float = 10.0, every_s: float = 0.02
) -> Any:
    """Wait until it is true; returns it."""
    until = time.monotonic() + timeout_s
    while not (found := await condition()):
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(every_s)
    return found


@dataclass
class Process:
    """One role."""

    name: str
    role: str
    ops: str
    log: Path
    popen: subprocess.Popen[bytes]
    api: str = ""
    admin: str = ""

    async def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /ready; 0 where nobody listens."""
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answer = await http.get(f"{self.ops}/ready", timeout=2.0)
            except httpx.HTTPError:
                return 0, {}
            return answer.status_code, answer.json()

    async def is_in(self, state: str, *, timeout_s: float = _READY_S) -> None:
        """Wait until it says so."""

        async def found() -> bool:
            assert self.popen.poll() is None, f"{self.name} ended: {self.words()}"
            return (await self.readiness())[1].get("state") == state

        await eventually(found, what=f"{self.name} is {state}: {await self.readiness()}", timeout_s=timeout_s)

    def end(self, how: signal.Signals = signal.SIGKILL) -> int:
        """The exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.popen.wait(60)

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@dataclass
class Stack:
    """`start` roles by name. `end` leaves none."""

    directory: Path
    options: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    def start_nats(self) -> None:
        """With the configuration of `headgate secrets`, but for where it listens and stores."""
        self.secrets = self.directory / "secrets"
        SecretFiles(self.secrets).make_missing()
        config = json.loads((self.secrets / "nats.conf").read_text())
        self.nats_port, monitor = free_ports(2)
        config |= {"listen": f"127.0.0.1:{self.nats_port}", "http": f"127.0.0.1:{monitor}"}
        config["jetstream"]["store_dir"] = str(self.directory / "jetstream")
        path = self.directory / "nats.conf"
        path.write_text(json.dumps(config))
        with (self.directory / "nats.log").open("wb") as log:
            self.nats = subprocess.Popen([find_binary(), "-c", str(path)], stdout=log, stderr=log)

    def start(self, role: str, name: str = "", **options: str) -> Process:
        """As a container would: nothing but the environment says what it is to be."""
        name = name or role
        ops, port, admin_port = free_ports(3)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("HEADGATE_", "OTEL_"))
        } | {
            "HEADGATE_NATS": f"nats://{role}@127.0.0.1:{self.nats_port}",
            "HEADGATE_NATS_PASSWORD_FILE": str(self.secrets / f"nats-{role}"),
            "HEADGATE_OPS_PORT": str(ops),
            "HEADGATE_INSTANCE": name,
            "HEADGATE_DATA": str(self.directory / "data" / name),
            "HEADGATE_DEVICE": "mock",
            "HEADGATE_SAMPLE_RATIO": "0",
            **self.options,
        }
        if role == "ledger":
            environment["HEADGATE_NATS_ADMIN_PASSWORD_FILE"] = str(self.secrets / "nats-admin")
        if role == "gateway":
            environment |= {"HEADGATE_PORT": str(port), "HEADGATE_ADMIN_PORT": str(admin_port)}
            for variable, secret in (("ADMIN_KEY", "admin-key"), ("PEPPER", "pepper"), ("CACHE_SALT", "cache-salt")):
                environment[f"HEADGATE_{variable}_FILE"] = str(self.secrets / secret)
        environment |= options
        log = self.directory / f"{name}.log"
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "headgate", "run", role], env=environment, stdout=out, stderr=out
            )
        process = Process(name, role, f"http://127.0.0.1:{ops}", log, popen)
        if role == "gateway":
            process.api, process.admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
        self.processes[name] = process
        return process

    async def start_all(self, *names: str) -> None:
        """Those (`role` or `role-something`), the ledger first, until all are ready or stand by."""
        for name in names:
            process = self.start(name.partition("-")[0], name)
            if process.role == "ledger":
                await process.is_in("ready")
        for name in names:
            process = self.processes[name]

            async def ready(process: Process = process) -> bool:
                assert process.popen.poll() is None, f"{process.name} ended: {process.words()}"
                return (await process.readiness())[0] == 200

            await eventually(ready, what=f"{name} is ready: {await process.readiness()}", timeout_s=_READY_S)

    def admin_key(self) -> str:
        return (self.secrets / "admin-key").read_text().strip()

    def admin(self, gateway: Process) -> httpx.Client:
        """The admin API of a gateway."""
        headers = {"authorization": f"Bearer {self.admin_key()}"}
        return httpx.Client(base_url=f"{gateway.admin}/admin/v1", headers=headers, trust_env=False)

    def tenant(self, gateway: Process, name: str, **fields: Any) -> str:
        """Make one; its key."""
        with self.admin(gateway) as admin:
            admin.post("/tenants", json={"name": name, **fields}).raise_for_status()
            return str(admin.post("/keys", json={"tenant": name}).raise_for_status().json()["key"])

    def end(self) -> None:
        for process in self.processes.values():
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.popen.wait(20)
        self.nats.kill()
        self.nats.wait(20)
