"""Requests that are preempted again and again, in a cache that is too small for them, are answered right."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import httpx
import pytest
from stack_support import Answer, Stack, counting, eventually


@pytest.mark.parametrize("kind", ["swap", "recompute"])
async def test_answers_are_right_under_preemption(new_stack: Callable[..., Stack], kind: str) -> None:
    """Ten long answers at once where the cache holds few, and a victim every ten steps."""
    stack = new_stack("--slots", "8", "--kv-mib", "2", "--preemption", kind, "--force-preempt-every", "10")
    tenant = stack.tenant()
    async with stack.blocks() as blocks, tenant.client() as client:
        size = blocks.workers[0].blocks
        asked = [tenant.ask(client, counting(first, first + 95)) for first in range(1, 11)]
        answers: list[Answer] = await asyncio.gather(*asked)
        for answer in answers:
            answer.assert_right()
        await blocks.all_free()
        await tenant.settled(answers)
        need = sum(-(-(answer.prompt_tokens + answer.output_tokens) // 16) for answer in answers)
        assert need > size, f"{need} blocks would fit into {size}: that is no pressure"

        async def preemptions() -> int:
            async with httpx.AsyncClient(trust_env=False) as http:
                text = (await http.get(f"{stack.api}/metrics")).text
            found = re.findall(rf'headgate_preemptions_total{{kind="{kind}"[^}}]*}} (\S+)', text)
            return int(float(found[0])) if found else 0

        assert await eventually(preemptions, what="preemptions are counted", every_s=0.1) >= 5
