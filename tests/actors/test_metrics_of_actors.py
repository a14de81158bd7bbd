"""What the actors' metrics say of what happened, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from virtual_stack import MODEL, VirtualStack, request, virtual_stack

from actors.addresses import instance_of
from actors.runtime.simulation import run
from actors.usage import USAGE_STREAM
from policies.config import SchedulerConfig
from policies.vocabulary import Contract, Request, Tenant, Tier

SCHEDULER = f"scheduler.{instance_of(MODEL)}"


def value(stack: VirtualStack, process: str, name: str, **labels: str) -> float:
    """The sum of the series with these labels."""
    samples = [s for family in stack.metrics[process].registry.collect() for s in family.samples if s.name == name]
    found = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    assert found, (name, labels)
    return sum(found)


async def generate(stack: VirtualStack, wanted: Request) -> None:
    generation = await stack.gateway.admit(wanted, key="k", patience_s=60.0)
    async for _ in generation.deliveries():
        pass
    await generation.close()


def test_steps_are_counted_to_the_token(tmp_path: Path) -> None:
    """Prefill and decode tokens, steps, rows and chunks add up to what the requests needed."""

    async def main() -> None:
        async with virtual_stack(tmp_path, tokens_per_step=32) as stack:
            await asyncio.gather(*(generate(stack, request(i, prompt=50, outputs=10)) for i in range(4)))
            await asyncio.sleep(0.1)

            def of(name: str, **labels: str) -> float:
                return value(stack, SCHEDULER, name, model=MODEL, worker="w0", **labels)

            assert of("headgate_step_tokens_total", phase="prefill") == 4 * 50
            # The first output comes with the last chunk; a row that ends has one more step in flight at most.
            assert 4 * 9 <= of("headgate_step_tokens_total", phase="decode") <= 4 * 10
            steps = of("headgate_steps_total")
            assert steps == value(stack, "worker.w0", "headgate_step_seconds_count")
            assert steps == of("headgate_step_rows_count") == of("headgate_step_predicted_seconds_count")
            assert of("headgate_chunk_tokens_sum") == 4 * 50
            assert of("headgate_chunk_tokens_count") >= 4 * 2
            # The mock takes as long as its model says, so that it is foreseen exactly.
            assert of("headgate_step_prediction_ratio_sum") / of("headgate_step_prediction_ratio_count") < 1.05

    run(main())


def test_queues_slots_and_slack_are_told_as_they_are(tmp_path: Path) -> None:
    """With two slots, two of five run; those that wait with a promise have slack, and contracts are told."""

    async def main() -> None:
        async with virtual_stack(tmp_path, slots=2, config=SchedulerConfig(preempt_for_tier=False)) as stack:
            stack.tenants["gold"] = Tenant(name="gold", contract=Contract(ttft_ms=60_000, tpot_ms=None))
            asked = [
                asyncio.create_task(generate(stack, request(i, outputs=300, tier=Tier.default, ttft_s=60.0)))
                for i in range(5)
            ]
            await asyncio.sleep(0.2)
            running = value(stack, SCHEDULER, "headgate_requests_running", tier="default")
            waiting = value(stack, SCHEDULER, "headgate_requests_waiting", tier="default")
            deferred = value(stack, "admission.a0", "headgate_admission_waiting", tier="default")
            assert running == 2
            assert waiting + deferred == 3
            assert value(stack, SCHEDULER, "headgate_worker_slots", state="used") == 2
            assert value(stack, SCHEDULER, "headgate_worker_slots", state="free") == 0
            assert value(stack, SCHEDULER, "headgate_workers_attached") == 1
            assert value(stack, "gateway.g0", "headgate_open_streams", state="admitted") == 2 + waiting
            assert value(stack, "gateway.g0", "headgate_open_streams", state="asking") == deferred
            slack = value(stack, SCHEDULER, "headgate_queue_slack_min_seconds", tier="default")
            assert (0 < slack < 60) if waiting else slack == float("inf")
            assert value(stack, SCHEDULER, "headgate_queue_slack_min_seconds", tier="flex") == float("inf")
            assert value(stack, "gateway.g0", "headgate_contract_ttft_seconds", tenant="gold") == 60
            assert value(stack, "gateway.g0", "headgate_contract_attainment", tenant="gold", slo="ttft") == 0.99
            assert value(stack, "admission.a0", "headgate_admission_margin_ratio", tenant="gold", slo="ttft") == 0
            await asyncio.gather(*asked)
            await asyncio.sleep(0.1)  # a gateway hears of tokens before the scheduler does
            assert value(stack, SCHEDULER, "headgate_requests_running", tier="default") == 0
            assert value(stack, "admission.a0", "headgate_admission_decisions_total", decision="admitted") == 5

    run(main())


def test_a_dead_worker_is_counted_by_its_cause_and_its_streams_as_resumed(tmp_path: Path) -> None:
    """Five missed heartbeats, one worker less, and a stream that went on elsewhere."""

    async def main() -> None:
        async with virtual_stack(tmp_path, workers=2) as stack:
            asked = [asyncio.create_task(generate(stack, request(i, outputs=400))) for i in range(4)]
            await asyncio.sleep(0.3)
            await stack.kill("worker", "w0")
            await asyncio.gather(*asked)
            assert value(stack, SCHEDULER, "headgate_workers_lost_total", cause="missed") == 1
            assert value(stack, SCHEDULER, "headgate_workers_lost_total") == 1
            assert value(stack, SCHEDULER, "headgate_workers_attached") == 1
            assert value(stack, "gateway.g0", "headgate_resumed_streams_total", why="its worker died") >= 1
            assert value(stack, "gateway.g0", "headgate_heartbeat_age_seconds", role="worker", peer="w0") > 1
            assert value(stack, "gateway.g0", "headgate_heartbeat_age_seconds", role="worker", peer="w1") <= 0.2

    run(main())


def test_what_nobody_folds_is_lag(tmp_path: Path) -> None:
    """While the ledger is dead its stream grows; its successor tells how far behind it is until it has caught up."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            await generate(stack, request(1))
            await asyncio.sleep(3.0)
            assert value(stack, "ledger.l0", "headgate_ledger_lag_messages", stream="usage") == 0
            assert value(stack, "ledger.l0", "headgate_ledger_batch_records_sum", stream="usage") == 2
            await stack.kill("ledger", "l0")
            await asyncio.gather(*(generate(stack, request(i)) for i in range(2, 5)))
            transport = stack.gateway.node.transport
            assert await transport.backlog(USAGE_STREAM, "ledger") == 6
            await stack.start("ledger", "l0")
            await asyncio.sleep(10.0)
            assert value(stack, "ledger.l0", "headgate_ledger_lag_messages", stream="usage") == 0
            assert value(stack, "ledger.l0", "headgate_ledger_batch_records_sum", stream="usage") == 6

    run(main())


def test_every_reason_of_a_dead_letter_is_told_from_the_start(tmp_path: Path) -> None:
    """As 0, so that the first of its kind is a rise; what is counted as a full mailbox is told under both names."""

    async def main() -> None:
        async with virtual_stack(tmp_path) as stack:
            node = stack.gateway.node
            assert value(stack, "gateway.g0", "headgate_dead_letters_total", reason="expired") == 0
            node.dead_letter("mailbox-full")
            assert value(stack, "gateway.g0", "headgate_dead_letters_total", reason="mailbox-full") == 1
            assert value(stack, "gateway.g0", "headgate_mailbox_refused_total", actor="gateway") == 1
            assert value(stack, "gateway.g0", "headgate_mailbox_capacity") == 8192
            assert value(stack, "gateway.g0", "headgate_nats_connected") == 1
            assert value(stack, SCHEDULER, "headgate_lease_epoch") > 0
            assert value(stack, "gateway.g0", "headgate_lease_epoch") == 0

    run(main())
