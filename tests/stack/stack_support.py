"""A running stack as its users see it: started by its command, asked over HTTP, hurt by signals, watched on the bus."""

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai

from actors.messages import Load
from actors.runtime import Context, NatsTransport, Node
from actors.runtime.heartbeat import Alive
from demo.tasks import Task
from headgate.client import AdminClient
from headgate.commands.ps import processes
from headgate.errors import HeadgateError
from headgate.nats import NatsServer
from policies.vocabulary import WorkerLoad

__all__ = [
    "BACK_S",
    "Answer",
    "Blocks",
    "Stack",
    "Tenant",
    "asking",
    "counting",
    "eventually",
    "has_ended",
    "headgate",
    "resident_kib",
]

_LONG = {"max_tokens": 1900, "ignore_eos": True, "temperature": 0}
_START_S = 60.0
_STOP_S = 30.0
#: How long a killed process may take to be back, on two busy cores. A worker imports torch anew.
BACK_S = 30.0


def headgate(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "headgate", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]], *, timeout_s: float = 10.0, what: str = "", every_s: float = 0.01
) -> Any:
    """The first true value of `condition`, asked again and again. Fails with `what` after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {what or condition}"
        await asyncio.sleep(every_s)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet buried by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def resident_kib(pid: int, *, peak: bool = False) -> int:
    """Memory of a process, now or at its highest."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1])
    raise AssertionError(f"no {wanted} of {pid}")


def counting(first: int, last: int) -> Task:
    """A long answer that is easily checked: about three tokens a number."""
    return Task("count", f"count: {first} to {last}", " ".join(map(str, range(first, last + 1))), f"{first} to {last}")


@dataclass(slots=True)
class Answer:
    """What a client received. Times are seconds of the monotonic clock."""

    task: Task
    request_id: str = ""
    text: str = ""
    finish: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    decision: str = ""
    arrivals: list[float] = field(default_factory=list)  # of pieces of text

    @property
    def pause_s(self) -> float:
        """The longest wait for a piece, after the first."""
        return max((later - earlier for earlier, later in pairwise(self.arrivals)), default=0.0)

    def assert_right(self) -> None:
        assert self.text == self.task.answer, f"{self.task.prompt!r} was answered {self.text!r}"
        assert self.finish == "stop"


@dataclass(slots=True)
class Tenant:
    """A tenant with a key, and the official client that uses it."""

    stack: Stack
    name: str
    key: str

    def client(self, *, timeout_s: float = 60.0) -> openai.AsyncOpenAI:
        """It does not try again by itself: every refusal is seen."""
        return openai.AsyncOpenAI(
            base_url=f"{self.stack.api}/v1",
            api_key=self.key,
            max_retries=0,
            timeout=timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

    async def ask(self, client: openai.AsyncOpenAI, task: Task, **options: Any) -> Answer:
        """Stream one answer to its end."""
        answer = Answer(task)
        await self.stream(client, answer, **options)
        return answer

    async def stream(self, client: openai.AsyncOpenAI, answer: Answer, **options: Any) -> None:
        """Stream into `answer`, which others may look at meanwhile."""
        raw = await client.chat.completions.with_raw_response.create(
            model=self.stack.model,
            messages=[{"role": "user", "content": answer.task.prompt}],
            stream=True,
            stream_options={"include_usage": True},
            **{"temperature": 0, "max_tokens": 512} | options,
        )
        answer.request_id = raw.headers["x-request-id"]
        answer.decision = raw.headers["x-headgate-decision"]
        async for chunk in raw.parse():
            if chunk.usage is not None:
                answer.prompt_tokens, answer.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            for choice in chunk.choices:
                if choice.delta.content:
                    answer.text += choice.delta.content
                    answer.arrivals.append(time.monotonic())
                answer.finish = choice.finish_reason or answer.finish

    def usage(self) -> dict[str, Any]:
        """Its sums in the ledger."""
        with self.stack.admin() as admin:
            rows: list[dict[str, Any]] = admin.get("usage", tenant=self.name)["usage"]
        return rows[0] if rows else {"requests": 0, "prompt_tokens": 0, "output_tokens": 0, "unsettled": 0}

    async def settled(self, answers: Iterable[Answer], *, timeout_s: float = 10.0) -> None:
        """Wait until the ledger has exactly what the clients received, and nothing unsettled."""
        answers = list(answers)
        want = (len(answers), sum(a.prompt_tokens for a in answers), sum(a.output_tokens for a in answers), 0)

        def sums() -> tuple[int, int, int, int]:
            row = self.usage()
            return row["requests"], row["prompt_tokens"], row["output_tokens"], row["unsettled"]

        until = time.monotonic() + timeout_s
        while (have := await asyncio.to_thread(sums)) != want:
            assert time.monotonic() < until, f"settled (requests, prompt, output, unsettled): {have}, received: {want}"
            await asyncio.sleep(0.05)

    async def all_settled(self) -> list[dict[str, Any]]:
        """Its requests in the ledger, once there are some and none is unsettled."""

        def rows() -> list[dict[str, Any]]:
            with self.stack.admin() as admin:
                found: list[dict[str, Any]] = admin.get("usage", tenant=self.name, by="request")["usage"]
            return found

        async def settled() -> list[dict[str, Any]] | None:
            found = await asyncio.to_thread(rows)
            return None if not found or any(row["unsettled"] for row in found) else found

        settled_rows: list[dict[str, Any]] = await eventually(settled, what="all are settled", every_s=0.05)
        return settled_rows


class Connection:
    """A chat request on a socket of its own, read by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def leave(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def lines(self, count: int) -> None:
        for _ in range(count):
            assert await self.reader.readline(), "the stream has ended"


@contextlib.asynccontextmanager
async def asking(
    tenant: Tenant, prompt: str = "count: 1 to 96", *, receive_buffer: int = 0, **options: Any
) -> AsyncIterator[Connection]:
    """Send it, and do not wait for an answer."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    host, _, port = tenant.stack.api.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**14)
    message = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": tenant.stack.model, "messages": message, **_LONG, **options}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.key}\r\n"
    writer.write(head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        await connection.leave()


class Stack:
    """`headgate serve` on free ports."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self._options = options
        self._tenants = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.api = self.admin_url = self.model = ""

    # --- its life

    def start(self) -> None:
        """Returns when it has said that it is ready."""
        command = [sys.executable, "-m", "headgate", "serve", "--data", str(self.data), "--port", "0"]
        command += ["--admin-port", "0", "--device", "cpu", "--threads", "1", *self._options]
        self.data.parent.mkdir(parents=True, exist_ok=True)
        with self.data.with_suffix(".out").open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        endpoints = self.data / "endpoints.json"
        until = time.monotonic() + _START_S
        while not endpoints.exists():
            assert self.process.poll() is None, f"it ended: {self.output()}"
            assert time.monotonic() < until, f"it is not ready: {self.output()}"
            time.sleep(0.02)
        found = json.loads(endpoints.read_text())
        self.api, self.admin_url, self.model = found["api"], found["admin"], found["model"]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit code. SIGINT goes to its whole process group, as Ctrl-C does."""
        assert self.process is not None
        if how == signal.SIGINT:
            os.killpg(self.process.pid, how)
        else:
            self.process.send_signal(how)
        return self.process.wait(_STOP_S)

    def end(self) -> None:
        """Whatever became of it: nothing of it is left afterwards."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            self.process.kill()
            self.process.wait()

    def output(self) -> str:
        return self.data.with_suffix(".out").read_text(errors="replace")

    # --- its processes

    def ps(self) -> list[dict[str, Any]]:
        return processes(self.data)

    def pid(self, role: str, index: int = 0) -> int:
        return [int(row["pid"]) for row in self.ps() if row["role"] == role][index]

    def pids(self) -> dict[str, int]:
        """By role and instance, with that of the supervisor."""
        assert self.process is not None
        found = {f"{row['role']}.{row['instance']}": int(row["pid"]) for row in self.ps()}
        return {**found, "supervisor": self.process.pid}

    def signal(self, role: str, how: signal.Signals = signal.SIGKILL, *, index: int = 0) -> int:
        """Send a signal to a process of a role; its pid."""
        pid = self.pid(role, index)
        os.kill(pid, how)
        return pid

    async def all_ready(self, *, without: Iterable[int] = (), timeout_s: float = BACK_S) -> None:
        """Wait until `ps` shows every process ready, none of them with a pid of `without`, and the API is ready."""
        gone = set(without)

        def ready() -> bool:
            rows = self.ps()
            return all(row["state"] == "ready" and not has_ended(row["pid"]) for row in rows) and not (
                gone & {row["pid"] for row in rows}
            )

        await eventually(ready, timeout_s=timeout_s, what=f"all ready without {gone}: {self.ps()}", every_s=0.05)
        async with httpx.AsyncClient(base_url=self.api, trust_env=False) as http:

            async def answers() -> bool:
                with contextlib.suppress(httpx.HTTPError):
                    return (await http.get("/ready")).status_code == 200
                return False

            await eventually(answers, timeout_s=timeout_s, what="/ready", every_s=0.05)

    # --- its tenants

    def admin(self) -> AdminClient:
        return AdminClient(data=self.data)

    def tenant(self, name: str = "", **fields: Any) -> Tenant:
        """A new tenant with a key."""
        self._tenants += 1
        name = name or f"t{self._tenants}"
        with self.admin() as admin:
            admin.post("tenants", {"name": name, **fields})
            return Tenant(self, name, str(admin.post("keys", {"tenant": name})["key"]))

    # --- its insides

    @contextlib.asynccontextmanager
    async def blocks(self) -> AsyncIterator[Blocks]:
        """What the scheduler tells on the bus."""
        config = json.loads((self.data / "nats" / "nats.conf").read_text())
        server = NatsServer(self.data / "nats", port=int(config["listen"].rpartition(":")[2]))
        node = await Node.connect(NatsTransport(server.url("admin")), role="admin", instance=f"test-{os.getpid()}")
        try:
            watch = Blocks()
            await node.subscribe("scheduler", Load, watch.heard)
            await node.subscribe("admission", Alive, watch.heard_admission)
            await eventually(lambda: watch.workers, what="the scheduler tells its load")
            yield watch
        finally:
            await node.close()


class Blocks:
    """KV blocks of all workers, as of the latest word of the scheduler, which comes 10 ms after a change."""

    def __init__(self) -> None:
        self.workers: list[WorkerLoad] = []
        self.deferred = 0  # requests that wait for admission, as of its latest heartbeat

    def heard(self, load: Load, ctx: Context) -> None:
        self.workers = load.workers

    def heard_admission(self, alive: Alive, ctx: Context) -> None:
        self.deferred = int(alive.info["deferred"])

    @property
    def used(self) -> int:
        return sum(worker.blocks - worker.free_blocks for worker in self.workers)

    @property
    def requests(self) -> int:
        return sum(len(worker.requests) for worker in self.workers)

    async def all_free(self, *, workers: int = 1, timeout_s: float = 5.0) -> float:
        """Wait until no request holds a block, and all workers are there. Returns how long that took, in seconds."""
        began = time.monotonic()

        def free() -> bool:
            return len(self.workers) == workers and not self.used and not self.requests

        await eventually(free, timeout_s=timeout_s, what="all blocks are free", every_s=0.002)
        return time.monotonic() - began


def running(data: Path) -> bool:
    """Whether `ps` finds a stack."""
    try:
        processes(data)
    except HeadgateError:
        return False
    return True
