"""The live view of a gateway over the real actors, in virtual time: one merge for all who look."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from virtual_stack import MODEL, VirtualStack, request, virtual_stack

from actors.messages import SchedulerFacts, Watching
from actors.runtime import Context, MemoryTransport, Node
from actors.runtime.simulation import run
from gateway.errors import ApiError
from gateway.generation import Refused
from gateway.live.frame import Frame
from gateway.live.hub import MOST_VIEWERS, LiveHub
from policies.vocabulary import Contract, Tenant


def hub_of(stack: VirtualStack, node: Node | None = None) -> LiveHub:
    clock = asyncio.get_running_loop().time
    return LiveHub(
        node or stack.gateway.node,
        view=stack.gateway.view,
        tenants=lambda: sorted(stack.tenants.values(), key=lambda tenant: tenant.name),
        models={MODEL: None},
        clock=clock,
        unix=clock,
    )


async def frame_of(viewer: Any) -> Frame:
    body = await viewer.next()
    assert body is not None
    return msgspec.json.decode(body, type=Frame)


async def served(stack: VirtualStack, wanted: Any) -> None:
    generation = await stack.gateway.admit(wanted, key="k", patience_s=60.0)
    async for _ in generation.deliveries():
        pass
    await generation.close()


class Counting:
    """Words on the bus about the live view."""

    def __init__(self) -> None:
        self.watching: list[bool] = []
        self.facts = 0

    async def listen(self, stack: VirtualStack) -> Node:
        node = await Node.connect(MemoryTransport(stack.broker), role="worker", instance="ear")
        await node.subscribe("gateway", Watching, self._watching)
        await node.subscribe("scheduler", SchedulerFacts, self._facts)
        return node

    def _watching(self, watching: Watching, ctx: Context) -> None:
        self.watching.append(watching.whole)

    def _facts(self, facts: SchedulerFacts, ctx: Context) -> None:
        self.facts += 1


def test_the_first_frame_is_full_and_quick(tmp_path: Path) -> None:
    """As soon as admission and every scheduler have told, with what happened before anybody looked."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await served(stack, request(1))
            hub = hub_of(stack)
            began = asyncio.get_running_loop().time()
            async with hub.viewer() as viewer:
                frame = await frame_of(viewer)
                assert asyncio.get_running_loop().time() - began < 0.2
                assert frame.full
                assert [row.request for row in frame.decisions] == ["r1"]
                assert sum(step.prefill_tokens for step in frame.steps) == 20
                assert [row.name for row in frame.tenants] == ["free", "gold"]
                assert (frame.workers[0].state, frame.workers[0].slots) == ("ready", 8)
                assert {row["role"] for row in frame.processes} == {
                    "admission",
                    "gateway",
                    "ledger",
                    "scheduler",
                    "worker",
                }
            hub.close()

    run(main())


def test_a_refusal_is_in_a_frame_within_a_second(tmp_path: Path) -> None:
    """With its reason and numbers; and frames come at most four times a second."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=1) as stack:
            stack.tenants["gold"] = Tenant(name="gold", contract=Contract(tier="priority", ttft_ms=100.0))
            hub = hub_of(stack)
            loop = asyncio.get_running_loop()
            async with hub.viewer() as viewer:
                await frame_of(viewer)
                running = asyncio.create_task(served(stack, request(1, outputs=900)))
                await asyncio.sleep(1.0)
                with pytest.raises(Refused):
                    await stack.gateway.admit(request(2, ttft_s=0.05), key="k", patience_s=1.0)
                refused_at, frames, seen = loop.time(), 0, None
                while seen is None:
                    frame = await frame_of(viewer)
                    frames += 1
                    seen = next((row for row in frame.decisions if row.outcome == "refused"), None)
                assert loop.time() - refused_at < 1.0
                assert frames <= 4
                assert seen.reason == "ttft_unattainable"
                assert seen.measured is not None
                assert seen.threshold is not None
                assert seen.measured > seen.threshold
                assert not frame.full
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            hub.close()

    run(main())


def test_viewers_see_each_step_and_decision_once_however_slow(tmp_path: Path) -> None:
    """One that takes a frame a second has all that the one has that takes each."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            hub = hub_of(stack)
            seen: dict[str, list[tuple[int, int]]] = {"quick": [], "slow": []}

            async def look(name: str, pause_s: float) -> None:
                async with hub.viewer() as viewer:
                    while True:
                        frame = await frame_of(viewer)
                        seen[name] += [(step.number, 0) for step in frame.steps]
                        seen[name] += [(0, row.sequence) for row in frame.decisions]
                        await asyncio.sleep(pause_s)

            viewers = [asyncio.create_task(look("quick", 0.0)), asyncio.create_task(look("slow", 1.0))]
            for i in range(5):
                await asyncio.gather(*(served(stack, request(10 * i + j)) for j in range(3)))
            await asyncio.sleep(4.0)
            for task in viewers:
                task.cancel()
            await asyncio.gather(*viewers, return_exceptions=True)
            assert sorted(seen["quick"]) == sorted(seen["slow"])
            assert len(set(seen["quick"])) == len(seen["quick"])
            assert sum(sequence > 0 for _, sequence in seen["quick"]) == 15
            hub.close()

    run(main())


def test_many_look_for_the_price_of_one_and_too_many_are_refused(tmp_path: Path) -> None:
    """The same words on the bus for 32 viewers as for one; the next gets a 503; silence after the last has left."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            hub, ear = hub_of(stack), Counting()
            node = await ear.listen(stack)
            async with AsyncExitStack() as looking:
                viewers = [await looking.enter_async_context(hub.viewer()) for _ in range(MOST_VIEWERS)]
                bodies = await asyncio.gather(*(viewer.next() for viewer in viewers))
                assert len({id(body) for body in bodies}) == 1  # encoded once
                with pytest.raises(ApiError) as refused:
                    async with hub.viewer():
                        pass
                assert (refused.value.status, refused.value.retry_after_s) == (503, 5.0)
                await asyncio.sleep(5.0)
            assert ear.watching[0] is True
            assert not any(ear.watching[1:])
            assert 5 <= len(ear.watching) <= 7
            await asyncio.sleep(3.5)
            told, said = ear.facts, len(ear.watching)
            await asyncio.sleep(30.0)
            assert (ear.facts, len(ear.watching)) == (told, said)
            await node.close()
            hub.close()

    run(main())


def test_two_gateways_show_the_same(tmp_path: Path) -> None:
    """Whoever comes later asks for all that is kept, and the other takes nothing of it twice."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            second = await Node.connect(MemoryTransport(stack.broker), role="gateway", instance="g1")
            hubs = [hub_of(stack), hub_of(stack, second)]
            numbers: list[list[int]] = [[], []]
            async with hubs[0].viewer() as early:
                numbers[0] += [step.number for step in (await frame_of(early)).steps]
                await served(stack, request(1))
                await asyncio.sleep(1.0)
                async with hubs[1].viewer() as late:
                    numbers[1] += [step.number for step in (await frame_of(late)).steps]
                    await served(stack, request(2))
                    await asyncio.sleep(1.5)
                    for at, viewer in enumerate((early, late)):
                        frame = await frame_of(viewer)
                        numbers[at] += [step.number for step in frame.steps]
                        assert frame.gateway == f"g{at}"
            assert numbers[0] == numbers[1] == list(range(1, len(numbers[0]) + 1))
            assert numbers[0]
            for hub in hubs:
                hub.close()
            await second.close()

    run(main())


def test_lost_words_cost_no_step(tmp_path: Path) -> None:
    """The bus loses a third of all messages: what was missed is asked for again, and comes in order."""

    async def main() -> None:
        async with virtual_stack(tmp_path, seed=3) as stack:
            hub = hub_of(stack)
            numbers: list[int] = []
            async with hub.viewer() as viewer:
                numbers += [step.number for step in (await frame_of(viewer)).steps]
                for i in range(4):
                    await served(stack, request(i))
                    stack.broker.drop = 0.3
                    for _ in range(12):
                        numbers += [step.number for step in (await frame_of(viewer)).steps]
                    stack.broker.drop = 0.0
                await asyncio.sleep(3.0)
                numbers += [step.number for step in (await frame_of(viewer)).steps]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) > 100
            hub.close()

    run(main())


def test_a_stack_without_admission_is_still_shown(tmp_path: Path) -> None:
    """The first frame waits a second for those who do not tell, and no longer."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await stack.kill("admission", "a0")
            await asyncio.sleep(2.0)
            hub = hub_of(stack)
            began = asyncio.get_running_loop().time()
            async with hub.viewer() as viewer:
                frame = await frame_of(viewer)
                assert 0.9 < asyncio.get_running_loop().time() - began < 1.2
                assert frame.workers[0].slots == 8
                assert {row["role"] for row in frame.processes} == {"gateway", "ledger", "scheduler", "worker"}
            hub.close()

    run(main())


def test_a_restarted_scheduler_goes_on_in_the_same_view(tmp_path: Path) -> None:
    """Its steps are numbered anew and are new to the viewers."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await served(stack, request(1))
            hub = hub_of(stack)
            async with hub.viewer() as viewer:
                count = len((await frame_of(viewer)).steps)
                instance = stack.scheduler.node.instance
                await stack.kill("scheduler", instance)
                await asyncio.sleep(1.0)
                await stack.start("scheduler", instance)
                await asyncio.sleep(15.0)
                await served(stack, request(2))
                await asyncio.sleep(1.0)
                later = await frame_of(viewer)
                assert not later.full
                assert len(later.steps) == count
            hub.close()

    run(main())


def test_closing_ends_every_stream(tmp_path: Path) -> None:
    """A gateway that leaves must not wait for those who look."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            hub = hub_of(stack)
            async with hub.viewer() as viewer:
                await frame_of(viewer)
                waiting = asyncio.create_task(viewer.next())
                await asyncio.sleep(0.01)
                hub.close()
                assert await waiting is None
            with pytest.raises(ApiError, match="shutting down"):
                async with hub.viewer():
                    pass

    run(main())
