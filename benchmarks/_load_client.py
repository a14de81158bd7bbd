"""A closed loop of HTTP requests over raw sockets, cheap enough never to be what is measured.

Run as a process of its own, so that it can be given a core: a plan comes as JSON on standard input, what was measured
goes as JSON to standard output. Every reply is checked: its status, the number of its events, how it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

__all__ = ["Plan", "Reply", "Run"]

_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_OVERHEAD = b"\r\nx-headgate-overhead-ms: "


@dataclass(frozen=True)
class Plan:
    """`body` is JSON with `#` in the prompt where the number of the request goes, so that no two prompts are alike."""

    host: str
    port: int
    path: str
    key: str
    body: str
    concurrency: int
    requests: int
    warm_up: int = 0
    min_events: int = 0  # of a stream: fewer are a failure
    must_have: tuple[str, ...] = ()  # a reply without one of these is a failure
    cpus: tuple[int, ...] = ()  # empty: anywhere

    def payload(self, number: int) -> bytes:
        body = self.body.replace("#", str(number)).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True)
class Reply:
    """One exchange. Times in ms from the writing of the request."""

    first_ms: float  # to the first event, or to the body
    whole_ms: float
    events: int
    overhead_ms: float | None  # as Headgate's own header tells it


@dataclass
class Run:
    """What came of a plan."""

    wall_s: float = 0.0
    client_cpu_s: float = 0.0
    replies: list[Reply] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """Sends one request at a time, and calls back with each reply."""

    def __init__(self, plan: Plan, done: Callable[[_Connection, Reply | str], None]) -> None:
        self._plan = plan
        self._done = done
        self._transport: asyncio.WriteTransport | None = None
        self._parts: list[bytes] = []
        self._sent = self._first = 0.0
        self._head: bytes | None = None
        self._missing = 0  # of a body of known length; -1: chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's have not that base

    def send(self, number: int) -> None:
        assert self._transport is not None
        self._parts, self._head, self._first = [], None, 0.0
        payload = self._plan.payload(number)
        self._sent = time.perf_counter()
        self._transport.write(payload)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent:
            self._sent = 0.0
            self._done(self, f"the connection was closed in mid-reply ({exc})")

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._head is None:
            data = b"".join((*self._parts, data))
            self._parts = []
            head, end, data = data.partition(_HEAD_END)
            if not end:
                self._parts = [head]
                return
            self._head = head.lower()
            self._missing = -1
            if b"\r\ncontent-length:" in self._head:
                self._missing = int(self._head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if not data:
            return
        if not self._first:
            self._first = now
        self._parts.append(data)
        if self._missing >= 0:
            self._missing -= len(data)
            if self._missing <= 0:
                self._finish(now)
        elif data.endswith(_LAST_CHUNK) or (len(data) < 5 and b"".join(self._parts[-5:]).endswith(_LAST_CHUNK)):
            self._finish(now)

    def _finish(self, now: float) -> None:
        assert self._head is not None
        body, sent = b"".join(self._parts), self._sent
        self._sent = 0.0
        events = body.count(b"data: ")
        told = self._head.partition(_OVERHEAD)[2].partition(b"\r\n")[0]
        reply = Reply(
            first_ms=(self._first - sent) * 1000,
            whole_ms=(now - sent) * 1000,
            events=events,
            overhead_ms=float(told) if told else None,
        )
        status = self._head.partition(b"\r\n")[0].decode()
        if " 200" not in status:
            self._done(self, f"{status}: {body[:300].decode(errors='replace')}")
        elif events < self._plan.min_events:
            self._done(self, f"only {events} events: {body[-300:].decode(errors='replace')}")
        elif any(part.encode() not in body for part in self._plan.must_have):
            self._done(self, f"without one of {self._plan.must_have}: {body[-300:].decode(errors='replace')}")
        else:
            self._done(self, reply)


async def _loop(plan: Plan, requests: int, first_number: int) -> Run:
    """`plan.concurrency` connections, each with its next request as soon as its reply is whole."""
    loop = asyncio.get_running_loop()
    run, over = Run(), loop.create_future()
    sent = 0

    def next_on(connection: _Connection) -> None:
        nonlocal sent
        if sent < requests:
            sent += 1
            connection.send(first_number + sent)

    def done(connection: _Connection, reply: Reply | str) -> None:
        if isinstance(reply, str):
            run.failures.append(reply)
        else:
            run.replies.append(reply)
        if len(run.replies) + len(run.failures) == requests:
            over.set_result(None)
        else:
            next_on(connection)

    connections = [
        (await loop.create_connection(lambda: _Connection(plan, done), plan.host, plan.port))[1]
        for _ in range(min(plan.concurrency, requests))
    ]
    cpu_s, began = time.process_time(), time.perf_counter()
    for connection in connections:
        next_on(connection)
    await over
    run.wall_s, run.client_cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    for connection in connections:
        connection.close()
    return run


async def _main(plan: Plan) -> Run:
    base = time.time_ns() // 1_000_000 % 1_000_000_000 * 10_000  # other numbers than any run before
    if plan.warm_up:
        warm = await _loop(plan, plan.warm_up, base)
        if warm.failures:
            return warm
    return await _loop(plan, plan.requests, base + plan.warm_up)


def _run(plan: dict[str, Any]) -> Run:
    made = Plan(**{**plan, "must_have": tuple(plan["must_have"]), "cpus": tuple(plan["cpus"])})
    if made.cpus:
        os.sched_setaffinity(0, made.cpus)
    return uvloop.run(_main(made))


if __name__ == "__main__":
    json.dump(asdict(_run(json.load(sys.stdin))), sys.stdout)
