"""Whose traces are kept on the running stack, when none is sampled: `headgate trace` finds what matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from stack_support import Answer, Stack, counting, headgate

SERVER = "POST /v1/chat/completions"


def spans(stack: Stack, request_id: str) -> list[dict[str, Any]]:
    done = headgate("trace", request_id, "--json", "--data", str(stack.data))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


async def test_refused_and_preempted_requests_are_traced_at_ratio_zero(new_stack: Callable[..., Stack]) -> None:
    """Through all processes, over the real broker with its permissions"""
    options = ("--slots", "8", "--kv-mib", "2", "--preemption", "swap", "--force-preempt-every", "10")
    stack = new_stack("--sample-ratio", "0", *options)
    limited, tenant = stack.tenant(rpm=1), stack.tenant()
    async with limited.client() as client:
        await limited.ask(client, counting(1, 1))
        with pytest.raises(openai.RateLimitError) as refusal:
            await limited.ask(client, counting(1, 3))
    async with tenant.client() as client:
        answers = await asyncio.gather(*(tenant.ask(client, counting(first, first + 40)) for first in range(1, 7)))
    for answer in answers:
        answer.assert_right()
    refused = spans(stack, refusal.value.response.headers["x-request-id"])
    assert [span["name"] for span in refused] == [SERVER, "admission"]
    assert refused[1]["attributes"]["headgate.reason"] == "requests_per_minute"

    async def whole(answer: Answer) -> list[dict[str, Any]]:
        """All of it: the others record theirs when the gateway asks, and each store half a second later."""
        for _ in range(50):
            done = await asyncio.to_thread(headgate, "trace", answer.request_id, "--json", "--data", str(stack.data))
            found: list[dict[str, Any]] = json.loads(done.stdout) if not done.returncode else []
            if {"gateway", "admission", "scheduler", "worker"} <= {span["role"] for span in found}:
                return found
        return []

    kept = [found for found in [await whole(answer) for answer in answers[:2]] if found]
    assert kept
    for found in kept:
        by_name = {span["name"]: span for span in found}
        assert {span["parent_id"] for span in found} == {"", by_name[SERVER]["span_id"]}
        events = [event["name"] for span in found for event in span["events"]]
        assert "preempted" in events
        assert by_name[SERVER]["attributes"]["headgate.outcome"] == "ok"
