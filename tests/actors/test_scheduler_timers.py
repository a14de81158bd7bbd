"""What a scheduler does because time passes, though it hears nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from virtual_stack import MODEL, expected, request, virtual_stack

from actors.messages import Pressed
from actors.runtime.simulation import run
from gateway.generation import GenerationFailed
from policies.config import SchedulerConfig
from policies.overload import Level


def test_a_partial_batch_starts_when_its_time_is_over(tmp_path: Path) -> None:
    """Dynamic batching: nobody else comes, and no message either, but the oldest has waited long enough."""
    config = SchedulerConfig(batching="dynamic", batch_size=4, batch_timeout_s=0.5, order="fcfs")

    async def main() -> None:
        async with virtual_stack(tmp_path, config=config) as stack:
            wanted = request(1)
            loop = asyncio.get_running_loop()
            began, first_at, tokens = loop.time(), 0.0, []
            generation = await stack.gateway.admit(wanted, key="k", patience_s=60.0)
            async for delivery in generation.deliveries():
                first_at = first_at or loop.time()
                tokens += delivery.tokens
            await generation.close()
            assert tokens == expected(wanted)
            assert 0.5 <= first_at - began < 0.6

    run(main())


def test_who_cannot_be_in_time_any_more_is_told_so(tmp_path: Path) -> None:
    """Shedding: a request that no batch took in time goes back to its client with the reason, when it is lost."""
    config = SchedulerConfig(batching="static", batch_size=4, order="fcfs", shed_hopeless=True)

    async def main() -> None:
        async with virtual_stack(tmp_path, config=config) as stack:
            loop = asyncio.get_running_loop()
            began = loop.time()
            generation = await stack.gateway.admit(request(1, ttft_s=0.4), key="k", patience_s=60.0)
            with pytest.raises(GenerationFailed, match="deadline passed"):
                await anext(generation.deliveries())
            assert loop.time() - began < 0.45
            await generation.close()
            (link,) = stack.scheduler.links
            assert link.core.requests() == []

    run(main())


def test_a_scheduler_gives_up_what_admission_says_and_is_calm_when_it_hears_nothing_more(tmp_path: Path) -> None:
    """The level of the overload ladder comes over the bus, for this model alone, and lapses after three seconds."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            (link,) = stack.scheduler.links
            levels: list[Level] = []
            link.core.relieve = levels.append  # type: ignore[method-assign]
            node = stack.gateway.node
            await node.publish("admission", Pressed(model="another", level=Level.refuse))
            await node.publish("admission", Pressed(model=MODEL, level=Level.shrink))
            await asyncio.sleep(1.0)
            assert levels == [Level.shrink]
            await asyncio.sleep(3.0)
            assert levels == [Level.shrink, Level.calm]

    run(main())
