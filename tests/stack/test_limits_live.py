"""A tenant's limits, and the isolation of tenants, on the running stack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import openai
import pytest
from stack_support import Answer, Stack, Tenant, counting, eventually


async def refused(tenant: Tenant, client: openai.AsyncOpenAI, **options: int) -> openai.RateLimitError:
    """The 429 that it gets."""
    with pytest.raises(openai.RateLimitError) as caught:
        await tenant.ask(client, counting(1, 3), **options)
    error = caught.value
    assert error.response.headers["x-request-id"]
    assert error.response.headers["x-headgate-decision"] == "refused"
    return error


async def test_requests_a_minute(stack: Stack) -> None:
    """The third of two a minute is a 429 that says when to come back; headers count down and are never negative."""
    tenant = stack.tenant(rpm=2)
    async with tenant.client() as client:
        left = []
        for _ in range(2):
            raw = await client.chat.completions.with_raw_response.create(
                model=stack.model, messages=[{"role": "user", "content": "1+1="}], temperature=0
            )
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            left.append(int(raw.headers["x-ratelimit-remaining-requests"]))
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
            assert "x-ratelimit-limit-tokens" not in raw.headers
        assert left == [1, 0]
        error = await refused(tenant, client)
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    headers = error.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 15_000 < int(headers["retry-after-ms"]) <= 30_000  # two a minute: one every 30 s
    assert int(headers["retry-after"]) in range(15, 31)


async def test_tokens_a_minute(stack: Stack) -> None:
    """Prompt and max_tokens are reserved together, and what is not used is given back."""
    tenant = stack.tenant(tpm=600)
    async with tenant.client() as client:
        answer = await tenant.ask(client, counting(1, 3), max_tokens=500)  # reserves nearly all, uses a few

        async def fits() -> bool:
            try:
                return bool(await tenant.ask(client, counting(1, 3), max_tokens=500))
            except openai.RateLimitError:
                return False

        await eventually(fits, timeout_s=2.0, what="what it did not use is given back")
        error = await refused(tenant, client, max_tokens=599)
        raw = await client.chat.completions.with_raw_response.create(
            model=stack.model, messages=[{"role": "user", "content": "1+1="}], max_tokens=5
        )
    answer.assert_right()
    assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
    assert error.response.headers["x-should-retry"] == "false", "it alone is more than a minute's worth"
    assert raw.headers["x-ratelimit-limit-tokens"] == "600"
    assert 0 <= int(raw.headers["x-ratelimit-remaining-tokens"]) <= 600


async def test_requests_at_once(stack: Stack) -> None:
    """Of six at once, two are served and four are refused; then there is room again."""
    tenant = stack.tenant(concurrency=2)
    async with tenant.client() as client:
        asked = [tenant.ask(client, counting(first, first + 95)) for first in range(1, 7)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        served = [result for result in results if isinstance(result, Answer)]
        turned_away = [result for result in results if isinstance(result, openai.RateLimitError)]
        assert (len(served), len(turned_away)) == (2, 4), results
        assert all(int(error.response.headers["retry-after-ms"]) > 0 for error in turned_away)
        for answer in served:
            answer.assert_right()

        async def again() -> bool:
            try:
                return bool(await tenant.ask(client, counting(1, 3)))
            except openai.RateLimitError:
                return False

        await eventually(again, timeout_s=2.0, what="a place is free")


async def test_tokens_a_day(stack: Stack) -> None:
    """A spent budget is insufficient_quota, which the client does not retry; a new admission actor knows of it too."""
    tenant = stack.tenant(daily_tokens=300)
    async with tenant.client() as client:
        answer = await tenant.ask(client, counting(1, 60), max_tokens=200)
        answer.assert_right()
        await tenant.settled([answer])
        for restarted in (False, True):
            if restarted:
                dead = stack.signal("admission")
                await stack.all_ready(without={dead})
            error = await refused(tenant, client, max_tokens=200)
            assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
            assert error.response.headers["x-should-retry"] == "false"


async def test_a_changed_limit_holds_at_once(stack: Stack, tenant: Tenant) -> None:
    """Limits follow the directory without a restart."""
    async with tenant.client() as client:
        await tenant.ask(client, counting(1, 3))
        with stack.admin() as admin:
            admin.patch(f"tenants/{tenant.name}", {"rpm": 1})

        async def limited() -> bool:
            try:
                await tenant.ask(client, counting(1, 3))
            except openai.RateLimitError:
                return True
            return False

        await eventually(limited, timeout_s=2.0)


async def test_a_flood_of_one_tenant_is_refused_and_the_other_is_served(new_stack: Callable[..., Stack]) -> None:
    """Free floods a small worker for two seconds: it is deferred, then refused with 503 and a time to come back;
    gold keeps its contract and every answer is right."""
    stack = new_stack("--slots", "4")
    gold, free = stack.tenant(tier="priority", ttft_ms=1000), stack.tenant(tier="flex")
    served: list[Answer] = []
    ttft_s: list[float] = []
    errors: list[openai.APIStatusError] = []

    async with gold.client() as patient, free.client(timeout_s=1.0) as hurried:
        flood: set[asyncio.Task[None]] = set()

        async def one(first: int) -> None:
            try:
                served.append(await free.ask(hurried, counting(first, first + 95)))
            except openai.APIStatusError as error:
                errors.append(error)
            except openai.APITimeoutError:
                pass  # it would wait a second at most

        until, sent = time.monotonic() + 2.0, 0
        while time.monotonic() < until:
            while len(flood) < 60:
                sent += 1
                task = asyncio.create_task(one(1 + sent % 20))
                flood.add(task)
                task.add_done_callback(flood.discard)
            asked = time.monotonic()
            answer = await gold.ask(patient, counting(10, 20))
            ttft_s.append(answer.arrivals[0] - asked)
            answer.assert_right()
        await asyncio.gather(*flood)
    assert len(ttft_s) >= 3
    assert max(ttft_s) < 1.0, ttft_s
    assert errors, "a flood must be refused"
    for error in errors:
        assert error.status_code == 503, error
        assert error.type == "service_unavailable_error"
        assert error.code in ("sla_unattainable", "deadline_exceeded")
        assert int(error.response.headers["retry-after-ms"]) > 0
    for answer in served:
        answer.assert_right()
