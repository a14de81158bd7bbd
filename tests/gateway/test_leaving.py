"""Clients that leave, read slowly, or wait in silence."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress

import pytest
from edge_support import KEY, Edge, FakeFrontend, edge, silent, small_model

from gateway.settings import EdgeSettings
from policies.vocabulary import Finish

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(served: Edge, **options: object) -> Connection:
    """Send a chat request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=2**14)
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}], **options}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    return reader, writer


async def leave(connection: Connection) -> None:
    """Close the socket as a client that goes away does."""
    connection[1].close()
    with suppress(ConnectionError):
        await connection[1].wait_closed()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_while_waiting_for_admission_withdraws(stream: bool, n: int) -> None:
    """A client that leaves before the decision cancels every call of admit."""
    frontend = FakeFrontend(silent, gate=asyncio.Event())
    async with edge(frontend) as served:
        connection = await ask(served, stream=stream, n=n)
        await frontend.asked.wait()
        await leave(connection)
        async with asyncio.timeout(0.5):
            await frontend.all_withdrawn(n)
    assert frontend.generations == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [0, 3])
async def test_leaving_closes_the_generation_at_once(stream: bool, tokens: int) -> None:
    """Streaming or not, before the first token or after it, a client that leaves cancels its generation."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        connection = await ask(served, stream=stream)
        await frontend.admitted.wait()
        generation = frontend.generations[0]
        if tokens:
            generation.give([5] * tokens)
            await generation.read_after(0)
        await leave(connection)
        async with asyncio.timeout(0.5):
            await generation.closed.wait()
    assert generation.closed_with == [Finish.cancelled]


async def test_leaving_closes_all_choices() -> None:
    """All choices of an answer end with their client."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        connection = await ask(served, stream=True, n=3)
        await connection[0].readuntil(b"\r\n\r\n")
        await leave(connection)
        async with asyncio.timeout(0.5):
            for generation in frontend.generations:
                await generation.closed.wait()
    assert len(frontend.generations) == 3


async def test_leaving_with_a_request_in_the_pipeline_closes_too() -> None:
    """A second request sent before the first is answered does not hide that the client left."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        connection = await ask(served, stream=True)
        await frontend.admitted.wait()
        connection[1].write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await connection[1].drain()
        frontend.generations[0].give([5])
        await connection[0].readuntil(b'"content"')
        await leave(connection)
        async with asyncio.timeout(0.5):
            await frontend.generations[0].closed.wait()


async def test_requests_in_a_pipeline_are_answered_in_order() -> None:
    """Some requests may be sent ahead; a flood of them, or of their bodies, ends the connection."""
    frontend = FakeFrontend(lambda generation: generation.give([5, 1], Finish.stop))
    async with edge(frontend) as served:
        connection = await ask(served, stream=True)
        connection[1].write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        await connection[0].readuntil(b"[DONE]")
        await connection[0].readuntil(b'{"status":"ok"}')
        await leave(connection)
        for flood in (
            b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
            b"POST / HTTP/1.1\r\ncontent-length: 999999\r\n\r\n",
        ):
            frontend.script = silent
            frontend.admitted.clear()
            connection = await ask(served, stream=True)
            await frontend.admitted.wait()
            connection[1].write(flood + b"x" * 200_000)
            with suppress(ConnectionError):
                await connection[0].read()
            await leave(connection)
            async with asyncio.timeout(0.5):
                await frontend.generations[-1].closed.wait()


async def test_leaving_in_the_middle_of_the_body_is_no_error() -> None:
    """Half a request is nothing: nobody is asked, and the server goes on."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        writer.write(head.encode() + b"content-length: 100\r\n\r\n{")
        await writer.drain()
        await leave((_, writer))
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200" in await reader.readline()
        await leave((reader, writer))
    assert frontend.requests == []


async def test_the_end_of_an_answer_is_not_taken_for_leaving() -> None:
    """Two requests on one connection are both answered, and their generations are closed with their own finish."""
    model = small_model()
    frontend = FakeFrontend(lambda generation: generation.give([5, 1], Finish.stop))
    async with edge(frontend, model=model) as served, served.client() as client:
        for stream in (True, False):
            answer = await client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "hi"}], stream=stream
            )
            if stream:
                assert [chunk async for chunk in answer][-1].choices[0].finish_reason == "stop"
    assert [generation.closed_with for generation in frontend.generations] == [[Finish.stop], [Finish.stop]]


async def test_a_slow_reader_gets_larger_deliveries_and_no_queue() -> None:
    """While a client does not read, nothing is taken from the generation; then it gets all that came in the meantime,
    in order.
    """
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        for server in served.server.servers:
            for listening in server.sockets:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection = await ask(served, stream=True)
        await frontend.admitted.wait()
        generation = frontend.generations[0]
        # The pipe is full once a delivery is not followed by the next read.
        text = "x" * 2000
        tokens = served.model.encode([text], add_special_tokens=False)
        given = 0
        while given < 10_000:
            before = generation.delivered
            generation.give(tokens)
            given += 1
            try:
                async with asyncio.timeout(0.2):
                    await generation.read_after(before)
            except TimeoutError:
                break
        assert given < 10_000
        stalled = generation.delivered
        for _ in range(100):
            generation.give(tokens)
        generation.give([1], Finish.stop)
        *events, done, end = (await _whole_stream(connection)).split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text * (given + 100)
        assert generation.delivered <= stalled + 2
        await leave(connection)


async def _whole_stream(connection: Connection) -> str:
    reader = connection[0]
    await reader.readuntil(b"\r\n\r\n")
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    return b"".join(parts).decode()


async def test_a_reader_that_takes_nothing_is_gone_after_a_while() -> None:
    """A write that waits longer than write_timeout_s ends the generation."""
    frontend = FakeFrontend(silent)
    async with edge(frontend, settings=EdgeSettings(ping_interval_s=0.05, write_timeout_s=0.2)) as served:
        connection = await ask(served, stream=True)
        await frontend.admitted.wait()
        generation = frontend.generations[0]
        tokens = served.model.encode(["x" * 200_000], add_special_tokens=False)
        async with asyncio.timeout(10.0):
            while not generation.closed_with:
                before = generation.delivered
                generation.give(tokens)
                await generation.read_after(before)
        assert generation.closed_with == [Finish.cancelled]
        await leave(connection)


async def test_a_silent_stream_gets_comments() -> None:
    """Between two tokens that are far apart, comment lines keep the connection alive, and the client ignores them."""
    frontend = FakeFrontend(silent)
    async with edge(frontend, settings=EdgeSettings(ping_interval_s=0.02)) as served, served.client() as client:
        connection = await ask(served, stream=True)
        await connection[0].readuntil(b": ping\n\n")
        await connection[0].readuntil(b": ping\n\n")
        frontend.generations[0].give([5, 1], Finish.stop)
        await connection[0].readuntil(b"data: [DONE]\n\n")
        await leave(connection)
        frontend.admitted.clear()
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        frontend.generations[1].give([5, 1], Finish.stop)
        assert len([chunk async for chunk in stream]) == 3


async def test_small_writes_are_not_delayed() -> None:
    """TCP_NODELAY is set on accepted connections, on sockets that were passed in too."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served:
        connection = await ask(served, stream=True)
        await frontend.admitted.wait()
        for protocol in served.server.server_state.connections:
            accepted = protocol.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert served.server.server_state.connections
        await leave(connection)
