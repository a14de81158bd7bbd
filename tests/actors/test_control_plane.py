"""The actors together, in virtual time: what a client gets while messages are lost and processes die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from virtual_stack import MODEL, VirtualStack, expected, request, virtual_stack

from actors.addresses import instance_of
from actors.messages import UsageQuery, UsageRow, UsageRows
from actors.runtime.simulation import run
from gateway.generation import Refused
from policies.config import SchedulerConfig
from policies.vocabulary import Finish, Limits, Request, Tenant

Fault = Callable[[VirtualStack], Awaitable[None]]


async def generate(stack: VirtualStack, wanted: Request) -> list[int]:
    """Read a request to its end, as its HTTP handler would."""
    generation = await stack.gateway.admit(wanted, key="k", patience_s=60.0)
    tokens: list[int] = []
    async for delivery in generation.deliveries():
        tokens += delivery.tokens
    await generation.close()
    return tokens


async def usage(stack: VirtualStack) -> dict[str, UsageRow]:
    """The ledger's rows by request, once nothing is unsettled."""
    for _ in range(200):
        query = UsageQuery(by="request")
        rows = (await stack.gateway.node.ask("ledger.any", query, want=UsageRows, timeout_s=5.0)).rows
        if not any(row.unsettled for row in rows):
            return {row.request: row for row in rows}
        await asyncio.sleep(0.1)
    raise AssertionError(f"unsettled for 20 s: {rows}")


async def check_idle(stack: VirtualStack, *, within_s: float = 0.05) -> None:
    """Everything that was held is free again."""
    await asyncio.sleep(within_s)
    for link in stack.scheduler.links:
        load = link.core.load(0.0, "")
        assert (load.free_blocks, load.free_slots) == (load.blocks, load.slots)
        link.core.check_integrity()


def serve_all(
    tmp_path: Path,
    *,
    fault: Fault | None = None,
    requests: int = 12,
    tenants: tuple[str, ...] = ("gold",),
    **options: object,
) -> None:
    """Serve requests at once, with a fault in the middle, and check tokens, usage and blocks."""

    async def main() -> None:
        async with virtual_stack(tmp_path, **options) as stack:  # type: ignore[arg-type]
            wanted = [request(i, outputs=20 + 5 * i, tenant=tenants[i % len(tenants)]) for i in range(requests)]
            streams = [asyncio.create_task(generate(stack, one)) for one in wanted]
            if fault is not None:
                await asyncio.sleep(0.08)
                await fault(stack)
            async with asyncio.timeout(120):
                tokens = await asyncio.gather(*streams)
            stack.broker.drop = stack.broker.duplicate = 0.0
            assert tokens == [expected(one) for one in wanted]
            settled = await usage(stack)
            assert {name: row.output_tokens for name, row in settled.items()} == {w.id: w.max_tokens for w in wanted}
            assert {name: row.prompt_tokens for name, row in settled.items()} == {w.id: 20 for w in wanted}
            await check_idle(
                stack, within_s=2.0
            )  # the result of the last step may have been lost, and is asked for again

    run(main())


def test_streams_are_whole_and_settled(tmp_path: Path) -> None:
    """Without any fault every client gets every token once, and the ledger says so."""
    serve_all(tmp_path)


def test_two_workers_share_the_work(tmp_path: Path) -> None:
    """With two workers both run, and nobody notices which."""
    serve_all(tmp_path, workers=2, requests=24)


@pytest.mark.parametrize("seed", range(16))
def test_lost_and_doubled_messages_are_repaired(tmp_path: Path, seed: int) -> None:
    """With 3 % of all messages lost and 3 % doubled, every client gets every token once."""
    serve_all(tmp_path, seed=seed, drop=0.03, duplicate=0.03)


@pytest.mark.parametrize("preemption", ["swap", "recompute"])
def test_preempted_requests_lose_nothing(tmp_path: Path, preemption: str) -> None:
    """Preemption every few steps, either way, changes no token."""
    config = SchedulerConfig(preemption=preemption, force_preempt_every=5)  # type: ignore[arg-type]
    serve_all(tmp_path, config=config, blocks=48)


async def kill_worker(stack: VirtualStack) -> None:
    await stack.kill("worker", "w0")
    await asyncio.sleep(0.5)
    await stack.start("worker", "w0")


async def kill_worker_for_good(stack: VirtualStack) -> None:
    await stack.kill("worker", "w0")


async def kill_scheduler(stack: VirtualStack) -> None:
    await stack.kill("scheduler", instance_of(MODEL))
    await asyncio.sleep(0.5)
    await stack.start("scheduler", instance_of(MODEL))


async def kill_admission(stack: VirtualStack) -> None:
    await stack.kill("admission", "a0")
    await asyncio.sleep(0.5)
    await stack.start("admission", "a0")


async def kill_ledger(stack: VirtualStack) -> None:
    await stack.kill("ledger", "l0")
    await asyncio.sleep(0.5)
    await stack.start("ledger", "l0")


async def cut_off_the_worker(stack: VirtualStack) -> None:
    """A partition that is long enough for everybody to give the worker up, and then heals."""
    stack.broker.partition({"worker.w0"})
    await asyncio.sleep(3.0)
    stack.broker.heal()


@pytest.mark.parametrize(
    "fault", [kill_worker, kill_scheduler, kill_admission, kill_ledger, cut_off_the_worker], ids=lambda f: f.__name__
)
def test_clients_see_a_pause_and_no_error(tmp_path: Path, fault: Fault) -> None:
    """Whatever dies behind the gateway, streams go on without a missing or repeated token."""
    serve_all(tmp_path, fault=fault)


def test_requests_of_a_dead_worker_go_to_the_other(tmp_path: Path) -> None:
    """With a second worker nobody waits for the first to come back."""
    serve_all(tmp_path, fault=kill_worker_for_good, workers=2)


def test_a_cancelled_request_frees_its_blocks_and_is_settled_exactly(tmp_path: Path) -> None:
    """When a client leaves, its blocks are free within 100 ms, and usage is what the worker produced."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            generation = await stack.gateway.admit(request(1, outputs=500), key="k", patience_s=60.0)
            seen = 0
            async for delivery in generation.deliveries():
                seen += len(delivery.tokens)
                if seen >= 10:
                    break
            began = asyncio.get_running_loop().time()
            await generation.close()
            assert asyncio.get_running_loop().time() - began < 0.1
            await check_idle(stack)
            row = (await usage(stack))["r1"]
            assert seen <= row.output_tokens <= seen + 3  # two steps were in flight

    run(main())


def test_a_dead_gateway_is_settled_by_the_scheduler(tmp_path: Path) -> None:
    """What a gateway owned is freed and settled when its heartbeat stops."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await stack.gateway.admit(request(1, outputs=900), key="k", patience_s=60.0)
            await asyncio.sleep(0.2)
            await stack.kill("gateway", "g0")
            await asyncio.sleep(3.0)
            await check_idle(stack)
            await stack.start("gateway", "g1")
            row = (await usage(stack))["r1"]
            assert 0 < row.output_tokens < 900

    run(main())


def test_limits_are_reserved_and_settled(tmp_path: Path) -> None:
    """A tenant's concurrency is taken by the decision that admits, and given back at the end."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            stack.tenants["gold"] = Tenant(name="gold", limits=Limits(concurrency=1))
            first = asyncio.create_task(generate(stack, request(1)))
            await asyncio.sleep(0.02)
            with pytest.raises(Refused) as refused:
                await stack.gateway.admit(request(2), key="k", patience_s=1.0)
            assert refused.value.decision.reason == "concurrency"
            await first
            await asyncio.sleep(0.1)
            assert await generate(stack, request(3)) == expected(request(3))

    run(main())


def test_an_unattainable_contract_is_refused_at_once(tmp_path: Path) -> None:
    """A first token that no idle worker could give in time is refused with the figures, and no time to come back."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            with pytest.raises(Refused) as refused:
                await stack.gateway.admit(request(1, prompt=900, ttft_s=0.005), key="k", patience_s=30.0)
            decision = refused.value.decision
            assert (decision.reason, decision.retry_after_s) == ("ttft_unattainable", None)
            assert decision.measured > decision.threshold > 0

    run(main())


def test_a_flood_of_flex_leaves_a_contract_alone(tmp_path: Path) -> None:
    """While a tenant without a contract floods, one with a contract gets its first token in time; the flood is
    refused in part."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=4) as stack:

            async def flood(number: int) -> str:
                try:
                    await generate_flex(stack, number)
                except Refused as refused:
                    return "refused" if refused.decision.retry_after_s else "refused for ever"
                return "served"

            loop = asyncio.get_running_loop()
            flooding = [asyncio.create_task(flood(100 + i)) for i in range(200)]
            for i in range(10):
                began = loop.time()
                generation = await stack.gateway.admit(request(i, ttft_s=0.2, tier=0), key="k", patience_s=5.0)
                async for _ in generation.deliveries():
                    assert loop.time() - began <= 0.2
                    break
                await generation.close()
                await asyncio.sleep(0.05)
            outcomes = await asyncio.gather(*flooding)
            assert set(outcomes) == {"served", "refused"}

    run(main())


async def generate_flex(stack: VirtualStack, number: int) -> list[int]:
    wanted = request(number, tenant="free", tier=2, outputs=60)
    generation = await stack.gateway.admit(wanted, key="k", patience_s=2.0)
    tokens = [token async for delivery in generation.deliveries() for token in delivery.tokens]
    await generation.close(Finish.stop)
    return tokens


def test_waiting_for_a_decision_is_no_dead_letter(tmp_path: Path) -> None:
    """A deferred request is asked for again and again by its gateway; nothing of that is late, and it is served."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=1) as stack:
            long = asyncio.create_task(generate(stack, request(1, outputs=900)))
            await asyncio.sleep(0.1)
            wanted = request(2, tenant="free", tier=2)
            generation = await stack.gateway.admit(wanted, key="k", patience_s=30.0)
            assert generation.decision.deferred_s > 2.0
            tokens = [token async for delivery in generation.deliveries() for token in delivery.tokens]
            await generation.close(Finish.stop)
            assert tokens == expected(wanted)
            await long
            assert not stack.node("admission", "a0").dead_letters["expired"]

    run(main())


def test_what_waits_at_admission_for_a_dead_gateway_is_never_served(tmp_path: Path) -> None:
    """A deferred request leaves with its gateway: it takes no slot later, and the books know nothing of it."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=1) as stack:
            await stack.gateway.admit(request(1, outputs=900), key="k", patience_s=60.0)
            await asyncio.sleep(0.1)
            flex = [request(i, tenant="free", tier=2) for i in range(2, 6)]
            waiting = [asyncio.create_task(stack.gateway.admit(one, key="k", patience_s=30.0)) for one in flex]
            await asyncio.sleep(0.1)
            doors = stack.metrics["admission.a0"].registry
            assert doors.get_sample_value("headgate_admission_waiting", {"tier": "flex"}) == len(flex)
            await stack.kill("gateway", "g0")
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.sleep(3.0)
            await check_idle(stack)
            await stack.start("gateway", "g1")
            assert list(await usage(stack)) == ["r1"]
            served = "headgate_tenant_service_tokens_total"
            registry = stack.metrics[f"scheduler.{instance_of(MODEL)}"].registry
            assert registry.get_sample_value(served, {"tenant": "gold"})
            assert not registry.get_sample_value(served, {"tenant": "free"})

    run(main())


def test_tokens_for_nobody_are_cancelled_by_a_gateway_that_knew_no_scheduler_yet(tmp_path: Path) -> None:
    """The first such tokens may come before the first heartbeat of a scheduler: the cancel comes after it."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await stack.gateway.admit(request(1, outputs=900), key="k", patience_s=60.0)
            await asyncio.sleep(0.2)
            stack.gateway._open.clear()
            known = dict(stack.gateway._scheduler_epochs)
            stack.gateway._scheduler_epochs.clear()
            await asyncio.sleep(0.05)
            stack.gateway._scheduler_epochs.update(known)
            await asyncio.sleep(0.1)
            await check_idle(stack)

    run(main())


def test_a_stream_that_outlasts_the_drain_is_told_that_it_ends(tmp_path: Path) -> None:
    """Its reader does not wait for tokens that cannot come: the process would be killed while it waits."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            generation = await stack.gateway.admit(request(1, outputs=900), key="k", patience_s=60.0)

            async def read() -> Finish:
                return [delivery.finish async for delivery in generation.deliveries()][-1]

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.2)
            node = stack.node("gateway", "g0")
            await node.drain(0.5)
            async with asyncio.timeout(1.0):
                assert await reading is Finish.cancelled

    run(main())
