"""The live view of a running stack: quick while somebody looks, silent while nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from stack_support import Stack, asking, eventually, headgate

from actors.messages import AdmissionFacts, SchedulerFacts, Watching
from actors.runtime import Context, NatsTransport, Node
from gateway.live.frame import Frame
from headgate.nats import NatsServer

_DECODER = msgspec.json.Decoder(Frame)


@contextlib.asynccontextmanager
async def looking(stack: Stack) -> AsyncIterator[AsyncIterator[Frame]]:
    """The frames of a viewer with the admin key."""
    key = (stack.data / "admin.key").read_text().strip()
    async with (
        httpx.AsyncClient(trust_env=False, timeout=10.0) as http,
        http.stream("GET", f"{stack.admin_url}/admin/v1/live", headers={"authorization": f"Bearer {key}"}) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def frames() -> AsyncIterator[Frame]:
            events: list[str] = []
            async for line in answer.aiter_lines():
                if line.startswith("event:"):
                    events.append(line)
                elif line.startswith("data:"):
                    assert events.pop() == "event: frame"
                    yield _DECODER.decode(line.removeprefix("data:").encode())

        yield frames()


@contextlib.asynccontextmanager
async def counting_facts(stack: Stack) -> AsyncIterator[dict[str, int]]:
    """Messages of the live view on the bus, by kind."""
    config = json.loads((stack.data / "nats" / "nats.conf").read_text())
    server = NatsServer(stack.data / "nats", port=int(config["listen"].rpartition(":")[2]))
    node = await Node.connect(NatsTransport(server.url("admin")), role="admin", instance=f"facts-{os.getpid()}")
    counts = {"scheduler": 0, "admission": 0, "gateway": 0}

    def counter(topic: str) -> Callable[[Any, Context], None]:
        def heard(message: Any, ctx: Context) -> None:
            counts[topic] += 1

        return heard

    try:
        await node.subscribe("scheduler", SchedulerFacts, counter("scheduler"))
        await node.subscribe("admission", AdmissionFacts, counter("admission"))
        await node.subscribe("gateway", Watching, counter("gateway"))
        yield counts
    finally:
        await node.close()


async def test_a_refusal_is_seen_within_a_second_with_its_reason_and_numbers(stack: Stack) -> None:
    """By whoever looks, from the moment in which its client has the answer."""
    tenant = stack.tenant("onlooked", tier="priority", ttft_ms=500, rpm=1)
    async with tenant.client() as client, looking(stack) as frames:
        first = await anext(frames)
        assert first.full
        assert "onlooked" in {row.name for row in first.tenants}
        message: Any = {"role": "user", "content": "37+58="}
        await client.chat.completions.create(model=stack.model, messages=[message], temperature=0)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model=stack.model, messages=[message], temperature=0)
        at = time.monotonic()
        request_id = refused.value.response.headers["x-request-id"]
        async for frame in frames:
            row = next((row for row in frame.decisions if row.request.startswith(request_id)), None)
            if row is not None:
                break
            assert time.monotonic() - at < 1.0, "no frame had it within a second"
        assert time.monotonic() - at < 1.0
        assert not frame.full
        assert (row.outcome, row.tenant, row.tier) == ("refused", "onlooked", "priority")
        assert (row.reason, row.threshold) == ("requests_per_minute", 1.0)
        assert row.message in str(refused.value)
        assert row.retry_after_ms is not None
        assert abs(row.at - time.time()) < 2.0
        told = next(tenant for tenant in frame.tenants if tenant.name == "onlooked")
        assert (told.admitted, told.refused) == (1, {"requests_per_minute": 1})


async def test_what_runs_is_seen_while_it_runs(stack: Stack) -> None:
    """The request with its progress, its tenant's blocks, the steps, and then the contract as it was kept."""
    tenant = stack.tenant("shown", tier="priority", ttft_ms=60_000, tpot_ms=60_000)
    async with looking(stack) as frames, asking(tenant, max_tokens=300):
        async for frame in frames:
            rows = [row for row in frame.running if row.tenant == "shown" and row.generated > 5]
            if rows and frame.steps:
                break
        (row,) = rows
        assert (row.phase, row.tier, row.worker) == ("decode", "priority", "w0")
        assert row.computed >= row.prompt_tokens
        assert row.slack_ms is not None
        assert frame.kv[0].owners["shown"] > 0
        assert frame.kv[0].states["used"] + frame.kv[0].states["free"] > 0
        worker = frame.workers[0]
        assert (worker.state, worker.device, worker.slots) == ("ready", "cpu", 8)
        assert worker.steps_per_s
        assert frame.steps[-1].decode_tokens >= 1
        assert abs(frame.steps[-1].at - time.time()) < 2.0
        shown = next(tenant for tenant in frame.tenants if tenant.name == "shown")
        assert (shown.running, shown.admitted) == (1, 1)
        assert shown.service_share


async def test_nothing_is_told_while_nobody_looks(stack: Stack) -> None:
    """Neither by gateways nor by actors, under load; and telling ends soon after the last viewer has left."""
    tenant = stack.tenant()
    async with counting_facts(stack) as counts, asking(tenant):
        with stack.admin() as admin:
            facts = await asyncio.to_thread(admin.get, "facts")
        assert _DECODER.decode(msgspec.json.encode(facts)).full
        async with looking(stack) as frames:  # and then goes away without a word
            assert (await anext(frames)).full
        await eventually(lambda: all(counts.values()), what="everybody tells", timeout_s=2.0)
        await asyncio.sleep(4.0)
        counts.update(dict.fromkeys(counts, 0))
        await asyncio.sleep(3.0)
        assert counts == {"scheduler": 0, "admission": 0, "gateway": 0}


async def test_a_viewer_does_not_hold_up_a_stack_that_ends(new_stack: Callable[..., Stack]) -> None:
    """Its stream ends by itself, in good order."""
    stack = new_stack("--device", "mock")
    async with looking(stack) as frames:
        assert (await anext(frames)).full
        began = time.monotonic()
        assert await asyncio.to_thread(stack.stop) == 0
        assert time.monotonic() - began < 5.0
        async for _ in frames:
            pass


async def test_spans_of_a_request_are_there_for_its_waterfall(stack: Stack) -> None:
    """As the store has them, by start; of an unknown request there are none."""
    tenant = stack.tenant()
    async with tenant.client() as client:
        message: Any = {"role": "user", "content": "37+58="}
        raw = await client.chat.completions.with_raw_response.create(
            model=stack.model, messages=[message], temperature=0
        )
    request_id = raw.headers["x-request-id"]

    def spans(of: str) -> list[dict[str, Any]]:
        with stack.admin() as admin:
            found: list[dict[str, Any]] = admin.get(f"requests/{of}/spans")["spans"]
        return found

    wanted = {"admission", "queue", "prefill", "decode"}

    async def complete() -> list[dict[str, Any]] | None:
        found = await asyncio.to_thread(spans, request_id)
        return found if wanted <= {span["name"] for span in found} else None

    found = await eventually(complete, timeout_s=10.0, every_s=0.1, what=f"spans {wanted}")
    starts = [span["start_unix_ns"] for span in found]
    assert starts == sorted(starts)
    assert {"span_id", "parent_id", "end_unix_ns", "attributes", "events", "role"} <= set(found[0])
    assert await asyncio.to_thread(spans, "req-unknown") == []


async def test_the_live_view_needs_the_admin_key(stack: Stack) -> None:
    """A tenant's key opens none of it."""
    tenant = stack.tenant()
    async with httpx.AsyncClient(base_url=f"{stack.admin_url}/admin/v1/", trust_env=False) as http:
        for path in ("facts", "live", "requests/x/spans"):
            assert (await http.get(path)).status_code == 401
            refused = await http.get(path, headers={"authorization": f"Bearer {tenant.key}"})
            assert refused.status_code == 401


def test_top_prints_a_frame_for_scripts_and_for_people(stack: Stack) -> None:
    """`--once --json` is the frame itself; `--once` the same as text."""
    stack.tenant("printed", tier="priority", ttft_ms=500)
    done = headgate("top", "--once", "--json", "--data", str(stack.data))
    assert done.returncode == 0, done.stderr
    frame = _DECODER.decode(done.stdout)
    assert frame.full
    assert frame.models == [stack.model]
    text = headgate("top", "--once", "--data", str(stack.data))
    assert text.returncode == 0, text.stderr
    assert all(word in text.stdout for word in ("printed", "decisions", "w0", "ready"))
    for wrong, code in ((["--json"], 2), ([], 1)):  # asked for wrongly; asked for rightly, but there is no terminal
        refused = headgate("top", *wrong, "--data", str(stack.data))
        assert (refused.returncode, "--once" in refused.stderr) == (code, True)


def test_top_without_a_stack_says_so(tmp_path: Path) -> None:
    """In one line."""
    refused = headgate("top", "--once", "--data", str(tmp_path))
    assert (refused.returncode, "no stack is running" in refused.stderr) == (1, True)
    assert "Traceback" not in refused.stderr


class Terminal:
    """A command on a terminal of its own, of 80x24."""

    def __init__(self, *arguments: str) -> None:
        self.fd, other = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        command = [sys.executable, "-m", "headgate", *arguments]
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
        os.close(other)
        self.seen = ""

    def read(self) -> str:
        """All that was drawn until now."""
        while select.select([self.fd], [], [], 0)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode(errors="replace")
        return self.seen

    async def shows(self, text: str, *, timeout_s: float = 15.0) -> None:
        self.read()
        self.seen = ""
        await eventually(lambda: text in self.read(), timeout_s=timeout_s, what=f"{text!r} on the screen")

    async def ended(self) -> int:
        def code() -> str:
            self.read()
            status = self.process.poll()
            return "" if status is None else str(status)

        return int(await eventually(code, what="top has ended"))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal() -> Any:
    """Makes terminals, and ends what runs on them."""
    made: list[Terminal] = []

    def make(*arguments: str) -> Terminal:
        made.append(Terminal(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("how", "code"), [("q", 0), ("ctrl-c", 0), ("terminated", 128 + signal.SIGTERM)])
async def test_top_ends_on_a_key_and_leaves_the_terminal_as_it_was(
    stack: Stack, terminal: Callable[..., Terminal], how: str, code: int
) -> None:
    """q or Ctrl-C, with exit code 0, or a signal; without a traceback."""
    top = terminal("top", "--data", str(stack.data))
    await top.shows("workers")
    if how == "q":
        os.write(top.fd, b"q")
    else:
        top.process.send_signal(signal.SIGINT if how == "ctrl-c" else signal.SIGTERM)
    assert await top.ended() == code
    assert "\x1b[?1049l" in top.read()  # back from the alternate screen
    assert "Traceback" not in top.seen


async def test_top_outlives_its_stack(new_stack: Callable[..., Stack], terminal: Callable[..., Terminal]) -> None:
    """It says that nobody answers, and goes on when somebody does, wherever that listens then."""
    stack = new_stack("--device", "mock")
    top = terminal("top", "--data", str(stack.data))
    await top.shows("workers")
    await asyncio.to_thread(stack.stop)
    await top.shows("no connection")
    await asyncio.to_thread(stack.start)
    await top.shows("no contract was judged", timeout_s=30.0)
    os.write(top.fd, b"q")
    assert await top.ended() == 0
