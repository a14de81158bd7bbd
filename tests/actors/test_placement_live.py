"""Placement in the scheduler actor: the policy set's rule, and the worker that admission chose."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from virtual_stack import MODEL, VirtualStack, expected, request, virtual_stack

from actors.addresses import scheduler_of
from actors.messages import Accepted, Submit
from actors.runtime.simulation import run
from policies.placement import PLACEMENTS, Placer
from policies.vocabulary import Request


async def submit(stack: VirtualStack, wanted: Request) -> str:
    """Give a request to the scheduler, as admission does; the worker that has it then."""
    await stack.gateway.node.ask(scheduler_of(MODEL), Submit(request=wanted), want=Accepted, timeout_s=5.0)
    return next(
        link.worker for link in stack.scheduler.links if wanted.id in {r.request.id for r in link.core.requests()}
    )


def test_the_worker_that_admission_chose_is_taken_while_it_lives(tmp_path: Path) -> None:
    """A request goes where it was admitted; if that worker died meanwhile, to another."""

    async def main() -> None:
        async with virtual_stack(tmp_path, workers=3) as stack:
            for i, name in enumerate(["w2", "w0", "w1", "w2", "w2", "w2"]):
                wanted = msgspec.structs.replace(request(i, outputs=200), worker=name)
                assert await submit(stack, wanted) == name
            await stack.kill("worker", "w2")
            await asyncio.sleep(3.0)
            wanted = msgspec.structs.replace(request(9, outputs=200), worker="w2")
            assert await submit(stack, wanted) in {"w0", "w1"}

    run(main())


@pytest.mark.parametrize("rule", PLACEMENTS)
def test_every_rule_places_live_requests(tmp_path: Path, rule: str) -> None:
    """Under each rule all workers get work, a worker that dies is left out, and no stream loses a token."""

    async def main() -> None:
        async with virtual_stack(tmp_path, workers=3) as stack:
            scheduler = stack.scheduler
            scheduler._placer = Placer(rule, report=scheduler._report, used_blocks=scheduler._used_blocks)
            for link in scheduler.links:
                scheduler._placer.join(link.worker, link.spec)

            async def generate(number: int) -> list[int]:
                generation = await stack.gateway.admit(request(number, outputs=40), key="k", patience_s=60.0)
                tokens = [token async for delivery in generation.deliveries() for token in delivery.tokens]
                await generation.close()
                return tokens

            streams = [asyncio.create_task(generate(i)) for i in range(18)]
            await asyncio.sleep(0.05)
            assert all(link.core.requests() for link in scheduler.links)
            await stack.kill("worker", "w1")
            async with asyncio.timeout(60):
                assert await asyncio.gather(*streams) == [expected(request(i, outputs=40)) for i in range(18)]
            await asyncio.sleep(0.5)
            assert {view.worker for view in scheduler._placer.book.views.values()} == {"w0", "w2"}
            assert all(view.pending == view.running == 0 for view in scheduler._placer.book.views.values())

    run(main())
