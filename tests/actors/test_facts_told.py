"""Facts are on the bus while somebody looks, and only then: in virtual time, with the real actors."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from virtual_stack import VirtualStack, request, virtual_stack

from actors.messages import AdmissionFacts, SchedulerFacts, Watching
from actors.runtime import Context, MemoryTransport, Node
from actors.runtime.simulation import run


class Ear:
    """Everything that is told, and when."""

    def __init__(self) -> None:
        self.schedulers: list[SchedulerFacts] = []
        self.admissions: list[AdmissionFacts] = []
        self.times: Counter[str] = Counter()

    async def listen(self, stack: VirtualStack) -> Node:
        node = await Node.connect(MemoryTransport(stack.broker), role="gateway", instance="viewer")
        await node.subscribe("scheduler", SchedulerFacts, self.heard_scheduler)
        await node.subscribe("admission", AdmissionFacts, self.heard_admission)
        return node

    def heard_scheduler(self, facts: SchedulerFacts, ctx: Context) -> None:
        self.schedulers.append(facts)

    def heard_admission(self, facts: AdmissionFacts, ctx: Context) -> None:
        self.admissions.append(facts)


async def served(stack: VirtualStack, wanted: Any) -> None:
    generation = await stack.gateway.admit(wanted, key="k", patience_s=60.0)
    async for _ in generation.deliveries():
        pass
    await generation.close()


def test_nobody_is_told_anything_while_nobody_looks(tmp_path: Path) -> None:
    """Not under load either."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            ear = Ear()
            node = await ear.listen(stack)
            await asyncio.gather(*(served(stack, request(i)) for i in range(4)))
            await asyncio.sleep(10.0)
            assert (ear.schedulers, ear.admissions) == ([], [])
            await node.close()

    run(main())


def test_facts_begin_at_once_and_end_soon_after_the_last_viewer(tmp_path: Path) -> None:
    """At most four a second, the first within a quarter of one; 3 s after the last word of a gateway there are none."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            ear = Ear()
            node = await ear.listen(stack)
            await node.publish("gateway", Watching(whole=True))
            await asyncio.sleep(0.25)
            assert len(ear.schedulers) == len(ear.admissions) == 1
            await asyncio.sleep(9.75)
            assert 11 <= len(ear.schedulers) <= 13
            assert 11 <= len(ear.admissions) <= 13
            await node.close()

    run(main())


def test_all_that_is_kept_is_told_first_and_what_is_new_after_it(tmp_path: Path) -> None:
    """A viewer that comes late sees the steps and decisions from before; numbers follow on each other."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await served(stack, request(1))
            ear = Ear()
            node = await ear.listen(stack)
            await node.publish("gateway", Watching(whole=True))
            await asyncio.sleep(0.2)
            whole = ear.schedulers[0]
            assert (whole.whole, whole.first) == (True, 1)
            assert sum(step.decode_tokens for step in whole.steps) == 29
            assert sum(step.prefill_tokens for step in whole.steps) == 20
            assert whole.served_tokens == {"gold": 49}
            assert [(d.outcome, d.request) for d in ear.admissions[0].decisions] == [("admitted", "r1")]
            assert ear.admissions[0].tenants[0].admitted == 1
            await served(stack, request(2))
            await asyncio.sleep(1.0)
            told = [step for facts in ear.schedulers for step in facts.steps]
            numbers = [facts.first + i for facts in ear.schedulers for i in range(len(facts.steps))]
            assert numbers == list(range(1, len(told) + 1))
            decided = [d.request for facts in ear.admissions for d in facts.decisions]
            assert decided == ["r1", "r2"]
            await node.close()

    run(main())


def test_what_runs_and_whose_the_memory_is_can_be_seen(tmp_path: Path) -> None:
    """While requests of two tenants run: their rows, blocks and slots."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=2) as stack:
            ear = Ear()
            node = await ear.listen(stack)
            wanted = [request(i, outputs=200, tenant=("gold", "free")[i % 2]) for i in range(4)]
            running = [asyncio.create_task(served(stack, one)) for one in wanted]
            await asyncio.sleep(0.2)
            await node.publish("gateway", Watching(whole=True))
            await asyncio.sleep(0.2)
            (worker,) = ear.schedulers[-1].workers
            assert (worker.slots, worker.free_slots, worker.device) == (2, 0, "mock")
            assert sum(worker.view.running.values()) == len(worker.view.rows) == 2
            assert {row.phase for row in worker.view.rows} == {"decode"}
            waiting = sum(worker.view.waiting.values()) + sum(group.count for group in ear.admissions[-1].waiting)
            assert waiting == 2
            assert sum(worker.view.owners.values()) == worker.blocks["used"]
            assert worker.steps_per_s > 10
            await asyncio.gather(*running)
            await node.close()

    run(main())
