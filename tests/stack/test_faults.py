"""Whatever dies behind the gateway, clients see a pause: no error, no token twice, none missing, the answer right."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

import httpx
import openai
import pytest
from stack_support import BACK_S, Answer, Blocks, Stack, Tenant, asking, counting, eventually

from actors.runtime import LEASE_TTL_S
from demo.tasks import Task

#: Far enough into their answers that something would be lost, and far from the end.
_UNDER_WAY = 20
_STREAMS = 6


async def through(tenant: Tenant, fault: Callable[[], Awaitable[None]], *, streams: int = _STREAMS) -> list[Answer]:
    """Answers to long questions, with a fault in the middle of all of them. Fails at any error of any stream."""
    answers = [Answer(counting(first, first + 95)) for first in range(1, streams + 1)]
    async with tenant.client() as client:
        running = [asyncio.create_task(tenant.stream(client, answer)) for answer in answers]
        try:
            await eventually(
                lambda: all(len(answer.arrivals) >= _UNDER_WAY for answer in answers) or any(t.done() for t in running),
                every_s=0.001,
                what="all streams are under way",
            )
            assert not any(task.done() for task in running), "a stream ended before the fault"
            await fault()
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return answers


async def check(
    stack: Stack, tenant: Tenant, answers: list[Answer], *, dead: int = 0, workers: int = 1, blocks: Blocks
) -> None:
    """Right answers, everybody back, all blocks free, and the ledger has exactly what was received."""
    for answer in answers:
        answer.assert_right()
    await stack.all_ready(without={dead})
    await tenant.settled(answers)
    await blocks.all_free(workers=workers)


def pause_ms(answers: list[Answer]) -> int:
    return round(1000 * max(answer.pause_s for answer in answers))


@pytest.mark.parametrize("role", ["worker", "scheduler", "admission", "ledger", "nats"])
async def test_streams_go_on_when_a_process_is_killed(
    stack: Stack, tenant: Tenant, role: str, pauses: dict[str, int]
) -> None:
    """kill -9 of any process behind the gateway is a pause to its streams; it comes back alone, and all adds up."""
    dead = 0

    async def kill() -> None:
        nonlocal dead
        dead = stack.signal(role)

    async with stack.blocks() as blocks:
        answers = await through(tenant, kill)
        pauses[f"kill -9 of {role}"] = pause_ms(answers)
        await check(stack, tenant, answers, dead=dead, blocks=blocks)


async def stop_for(stack: Stack, role: str, until: Callable[[], Awaitable[object]]) -> None:
    """SIGSTOP a process, and SIGCONT it after `until`."""
    pid = stack.signal(role, signal.SIGSTOP)
    try:
        await until()
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("seconds", [0.0, 3.5, LEASE_TTL_S * 2 / 3])
async def test_streams_go_on_when_a_worker_stalls(
    stack: Stack, tenant: Tenant, seconds: float, pauses: dict[str, int]
) -> None:
    """A worker that stops until it is given up, or so long that it loses its lease as well, is no more than a pause."""
    async with stack.blocks() as blocks:

        async def given_up() -> None:
            await eventually(lambda: not blocks.workers, what="the worker is given up")
            await asyncio.sleep(seconds)  # the length of the stall is what is tested

        answers = await through(tenant, lambda: stop_for(stack, "worker", given_up))
        pauses[f"worker stopped until given up and {seconds:g} s longer"] = pause_ms(answers)
        await check(stack, tenant, answers, blocks=blocks)


async def test_a_gateway_that_stalls_is_freed_of_its_requests_and_goes_on(
    stack: Stack, tenant: Tenant, pauses: dict[str, int]
) -> None:
    """A gateway that stops is taken for dead and its blocks are freed; when it goes on, so do its streams, and they
    are counted once and in full."""
    answers = [Answer(counting(first, first + 95)) for first in range(1, 7)]
    async with stack.blocks() as blocks, tenant.client() as client:
        # Long enough to be under way still when it is given up, which a right answer is not.
        options = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}
        running = [asyncio.create_task(tenant.stream(client, answer, **options)) for answer in answers]
        await eventually(lambda: all(len(answer.arrivals) >= _UNDER_WAY for answer in answers), every_s=0.001)
        await stop_for(stack, "gateway", blocks.all_free)
        assert not any(task.done() for task in running)
        await asyncio.gather(*running)
        pauses["gateway stopped until given up"] = pause_ms(answers)
        for answer in answers:
            assert answer.text.startswith(answer.task.answer)
            assert answer.output_tokens == 1900
        await stack.all_ready()
        await tenant.settled(answers)
        await blocks.all_free()


async def test_new_requests_wait_for_what_was_killed(stack: Stack, tenant: Tenant) -> None:
    """A request that comes while admission, the scheduler, the ledger and nats-server are away is served when they
    are back."""
    async with tenant.client() as client:
        answers = []
        for role in ("admission", "ledger", "scheduler", "nats"):
            dead = stack.signal(role)
            answers += await asyncio.gather(*(tenant.ask(client, counting(first, first + 5)) for first in (3, 30, 60)))
            await stack.all_ready(without={dead})
    for answer in answers:
        answer.assert_right()
    await tenant.settled(answers)


async def test_a_gateway_that_is_told_to_end_lets_its_streams_finish(stack: Stack, tenant: Tenant) -> None:
    """SIGTERM drains: what is under way ends as if nothing was, and the next gateway has the same address and keys."""
    dead = 0

    async def end() -> None:
        nonlocal dead
        dead = stack.signal("gateway", signal.SIGTERM)

    async with stack.blocks() as blocks:
        answers = await through(tenant, end)
        await check(stack, tenant, answers, dead=dead, blocks=blocks)
        async with tenant.client() as client:
            answers.append(await tenant.ask(client, counting(1, 9)))
        await check(stack, tenant, answers, dead=dead, blocks=blocks)


async def test_keys_tenants_and_usage_survive_a_killed_gateway(
    stack: Stack, tenant: Tenant, pauses: dict[str, int]
) -> None:
    """kill -9 of the gateway drops its connections; its requests are freed and settled, and nothing else is lost."""
    async with stack.blocks() as blocks, tenant.client() as client:
        whole = await tenant.ask(client, counting(1, 9))
        await tenant.settled([whole])
        cut = [Answer(counting(first, first + 95)) for first in range(1, 7)]
        running = [asyncio.create_task(tenant.stream(client, answer)) for answer in cut]
        await eventually(lambda: all(len(answer.arrivals) >= _UNDER_WAY for answer in cut), every_s=0.001)
        dead = stack.signal("gateway")
        killed = time.monotonic()
        for error in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(error, openai.APIError | httpx.TransportError), error
        await blocks.all_free()
        whole_again = await _first_answer(tenant)
        pauses["kill -9 of the gateway: until its successor answers"] = round(1000 * (time.monotonic() - killed))
        await stack.all_ready(without={dead})

        def usage() -> bool:
            row = tenant.usage()
            return bool(row["requests"] == 8 and row["unsettled"] == 0)

        await eventually(lambda: asyncio.to_thread(usage), what=f"all are settled: {tenant.usage()}", every_s=0.05)
        with stack.admin() as admin:
            rows = admin.get("usage", tenant=tenant.name, by="request")["usage"]
            assert tenant.name in {row["name"] for row in admin.get("tenants")["tenants"]}
    settled = {row["request"].rpartition("-")[0]: row["output_tokens"] for row in rows}
    assert settled[whole.request_id] == whole.output_tokens
    assert settled[whole_again.request_id] == whole_again.output_tokens
    for answer in cut:  # a piece is a token or more; a token may have been under way to its client
        assert len(answer.arrivals) <= settled[answer.request_id] <= 512


async def test_what_a_killed_gateway_had_not_read_is_settled(stack: Stack, tenant: Tenant) -> None:
    """Its client reads slowly: all is produced, and the scheduler has forgotten it, when the gateway is killed."""
    async with stack.blocks() as blocks:
        async with asking(tenant, stream=True, n=8, receive_buffer=4096):
            await eventually(lambda: blocks.requests, every_s=0.001)
            await blocks.all_free(timeout_s=60.0)
            assert (await asyncio.to_thread(tenant.usage))["unsettled"] > 0
            dead = stack.signal("gateway")
        await stack.all_ready(without={dead})
    assert [row["output_tokens"] for row in await tenant.all_settled()] == [1900] * 8


async def _first_answer(tenant: Tenant) -> Answer:
    """Ask until somebody listens. Until then connections are refused, or told 503; never anything else."""
    until = time.monotonic() + BACK_S
    async with tenant.client() as client:
        while True:
            try:
                return await tenant.ask(client, counting(1, 9))
            except openai.APIStatusError as error:
                if error.status_code != 503 or time.monotonic() > until:
                    raise
            except openai.APIConnectionError:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(0.005)


async def test_one_of_two_workers_is_killed(new_stack: Callable[..., Stack], pauses: dict[str, int]) -> None:
    """The other one takes over what the dead one had; nobody waits for it to come back. An answer drawn at random is
    the one that the first worker would have drawn: the seed and the position decide."""
    # In float32, where another way of cutting up the work changes nothing that a draw could see.
    stack = new_stack("--slots", "8", "--workers", "2", "--dtype", "float32")
    tenant = stack.tenant()
    dead = 0

    async def kill() -> None:
        nonlocal dead
        assert all(worker.requests for worker in blocks.workers), "both have work"
        dead = stack.signal("worker", index=1)

    async with stack.blocks() as blocks:
        await eventually(lambda: len(blocks.workers) == 2, timeout_s=BACK_S)
        answers = await through(tenant, kill)
        pauses["kill -9 of one of two workers"] = pause_ms(answers)
        await check(stack, tenant, answers, dead=dead, workers=2, blocks=blocks)
        answers += await _drawn_again(tenant, blocks)
        await tenant.settled(answers)


async def _drawn_again(tenant: Tenant, blocks: Blocks) -> list[Answer]:
    """The same story twice, with a kill in the second telling."""
    options = {"temperature": 1.0, "seed": 7, "extra_body": {"ignore_eos": True}, "max_tokens": 300}
    want, again = (Answer(Task("story", "story: fox and owl", "", "fox,owl")) for _ in range(2))
    async with tenant.client() as client:
        await tenant.stream(client, want, **options)
        running = asyncio.create_task(tenant.stream(client, again, **options))
        await eventually(lambda: len(again.arrivals) >= _UNDER_WAY and blocks.requests, every_s=0.001)
        (busy,) = (worker.worker for worker in blocks.workers if worker.requests)
        tenant.stack.signal("worker", index=int(busy.removeprefix("w")))
        await running
    assert again.pause_s > 0.5, "it was resumed"
    assert again.text == want.text
    assert again.output_tokens == want.output_tokens == 300
    return [want, again]
