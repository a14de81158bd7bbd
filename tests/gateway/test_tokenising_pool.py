"""Tokenising happens beside the event loop, and not without bound."""

from __future__ import annotations

import asyncio
import threading

import openai
import pytest
from blockbuster import blockbuster_ctx
from edge_support import FakeFrontend, edge, saying, small_model

from gateway.errors import Overloaded
from gateway.settings import EdgeSettings
from gateway.text.pool import TokenisingPool


async def test_a_full_queue_is_refused_at_once() -> None:
    """What waits and what runs count alike; a place is free again when its thread is done, not when its caller
    leaves.
    """
    pool = TokenisingPool(threads=1, queue=2)
    release = threading.Event()
    running = asyncio.ensure_future(pool.run(release.wait))
    waiting = asyncio.ensure_future(pool.run(lambda: 7))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 texts wait"):
        await pool.run(lambda: 8)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(Overloaded):
        await pool.run(lambda: 8)
    release.set()
    assert await waiting == 7
    assert await pool.run(lambda: 9) == 9
    pool.close()


async def test_work_of_a_caller_that_left_is_dropped() -> None:
    """A cancelled call that has not begun never runs."""
    pool = TokenisingPool(threads=1, queue=8)
    release = threading.Event()
    ran = []
    running = asyncio.ensure_future(pool.run(release.wait))
    dropped = asyncio.ensure_future(pool.run(lambda: ran.append(1)))
    await asyncio.sleep(0)
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped
    release.set()
    await running
    await pool.run(lambda: None)
    assert ran == []
    pool.close()


async def test_the_loop_is_never_blocked_while_serving() -> None:
    """No blocking call is made on the event loop between a request and the end of its answer."""
    model = small_model()
    async with edge(FakeFrontend(saying(model, "hello world")), model=model) as served, served.client() as client:
        message = {"role": "user", "content": "hi"}
        await client.chat.completions.create(model="demo", messages=[message])
        with blockbuster_ctx("gateway"):
            answer = await client.chat.completions.create(model="demo", messages=[message])
    assert answer.choices[0].message.content == "hello world"


async def test_a_long_text_does_not_stall_the_loop() -> None:
    """While megabytes are tokenised, the loop turns: the tokenizer lets go of the interpreter lock."""
    model = small_model(max_context=10**6)
    pool = TokenisingPool(threads=1, queue=1)
    text = "hello world " * 300_000
    longest = 0.0
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(pool.run(lambda: model.encode([text], add_special_tokens=False)))
    last = loop.time()
    while not work.done():
        await asyncio.wait([work], timeout=0.001)
        now = loop.time()
        longest, last = max(longest, now - last), now
    assert len(await work) >= 600_000
    assert longest < 0.5  # 1.2 s with a call that keeps the lock
    pool.close()


async def test_only_long_texts_take_the_way_over_the_pool() -> None:
    """A text of at most `tokenise_inline_chars` is answered also while the pool is full; a longer one is refused."""
    settings = EdgeSettings(tokenise_queue=0, tokenise_inline_chars=5)
    async with edge(settings=settings) as served, served.client(max_retries=0) as client:
        answer = await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content == "hello world"
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello!"}])
    assert caught.value.status_code == 503
