"""A client that leaves costs nothing: its blocks are free within 100 ms, and what it used is settled."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import openai
import pytest
from stack_support import Blocks, Stack, Tenant, asking, counting, eventually, resident_kib

#: From the close of the socket until the scheduler tells that the blocks are free. That it tells takes up to 10 ms.
_FREE_WITHIN_S = 0.1


async def freed(blocks: Blocks) -> float:
    return await blocks.all_free(timeout_s=2.0)


@pytest.mark.parametrize("stream", [True, False])
async def test_blocks_are_free_at_once_when_a_client_leaves(stack: Stack, tenant: Tenant, stream: bool) -> None:
    """In the middle of an answer, streamed or not: within 100 ms of the close, three times in a row."""
    async with stack.blocks() as blocks:
        took = []
        for _ in range(3):
            async with asking(tenant, stream=stream) as connection:
                if stream:
                    await connection.lines(60)
                else:
                    await eventually(lambda: blocks.used > 4, every_s=0.001, what="it has some tokens")
                await connection.leave()
                took.append(await freed(blocks))
        # One of three may be late where the machine is busy with something else.
        assert sorted(took)[1] < _FREE_WITHIN_S, took
    rows = await tenant.all_settled()
    assert len(rows) == 3
    for row in rows:
        assert 0 < int(str(row["output_tokens"])) < 1900


async def test_leaving_at_the_first_token(stack: Stack, tenant: Tenant) -> None:
    """As soon as the first byte of the answer is there."""
    async with stack.blocks() as blocks, asking(tenant, stream=True) as connection:
        await connection.lines(1)
        await connection.leave()
        assert await freed(blocks) < 5 * _FREE_WITHIN_S
    await tenant.all_settled()


async def test_leaving_before_the_first_token(stack: Stack) -> None:
    """At once after asking, wherever the request is by then: nothing of it stays anywhere, not in the limits either."""
    tenant = stack.tenant(concurrency=1)
    async with stack.blocks() as blocks, tenant.client() as client:
        for turn in range(12):
            async with asking(tenant, stream=turn % 2 == 0):
                await asyncio.sleep(turn / 1000)  # to be at another point of its way each time

            async def admitted() -> bool:
                try:
                    (await tenant.ask(client, counting(1, 3))).assert_right()
                except openai.RateLimitError:
                    return False
                return True

            await eventually(admitted, timeout_s=1.0, what="its place is free")
        await blocks.all_free()
    await tenant.all_settled()


async def test_leaving_while_it_waits_for_a_slot(stack: Stack, tenant: Tenant) -> None:
    """Eight slots are taken; the ninth waits, deferred or in the queue. When it leaves, it is never served."""
    async with stack.blocks() as blocks, AsyncExitStack() as busy:
        for _ in range(8):
            await busy.enter_async_context(asking(tenant, stream=True))
        await eventually(lambda: sum(w.free_slots for w in blocks.workers) == 0, every_s=0.001, what="slots are taken")
        async with asking(tenant, stream=True), asking(tenant, stream=False):
            await eventually(lambda: blocks.deferred + blocks.requests == 10, every_s=0.001, what="two wait")
        await eventually(lambda: blocks.requests == 8 and not blocks.deferred, every_s=0.001, what="none waits")
        await busy.aclose()
        assert await freed(blocks) < 5 * _FREE_WITHIN_S
    produced = sorted(int(str(row["output_tokens"])) for row in await tenant.all_settled())
    assert produced[-8] > 0
    assert not any(produced[:-8])


async def test_a_slow_reader_gets_everything_and_holds_nothing_up(stack: Stack, tenant: Tenant) -> None:
    """It reads nothing until all is produced: blocks are free, others are served, the gateway's memory is bounded,
    and then it gets every token."""
    before = resident_kib(stack.pid("gateway"))
    # Eight choices are more than sockets buffer, so that the gateway has to hold it.
    slow_one = asking(tenant, stream=True, n=8, receive_buffer=4096)
    async with stack.blocks() as blocks, tenant.client() as client, slow_one as slow:
        await eventually(lambda: blocks.requests, every_s=0.001)
        (await tenant.ask(client, counting(1, 9))).assert_right()
        await blocks.all_free(timeout_s=60.0)
        assert resident_kib(stack.pid("gateway")) < before + 30_000
        text, ended = ["" for _ in range(8)], 0
        while (line := await slow.reader.readline()) and ended < 8:
            if line.startswith(b"data: {"):
                assert b'"error"' not in line, line
                for choice in json.loads(line[6:])["choices"]:
                    text[choice["index"]] += choice["delta"].get("content") or ""
                    ended += choice["finish_reason"] == "length"
    assert ended == 8
    assert all(one.startswith(counting(1, 96).answer) for one in text)
    rows = await tenant.all_settled()
    tokens = [int(str(row["output_tokens"])) for row in rows]
    assert tokens.count(1900) == 8
