"""Admission, scheduler, workers, ledger and a gateway on one virtual clock: the real actors, an in-memory network, a
mock device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from actors.addresses import instance_of
from actors.admission import AdmissionActor
from actors.admission_metrics import AdmissionState
from actors.device_thread import DeviceThread
from actors.ledger import Ledger
from actors.ledger_sqlite import SqliteLedger
from actors.messages import UsageSettled
from actors.node_metrics import NodeMetrics
from actors.runtime import Actor, MemoryBroker, MemoryTransport, Node
from actors.scheduler import SchedulerActor
from actors.scheduler_metrics import SchedulerState
from actors.step_metrics import StepMetrics
from actors.usage import AUDIT_STREAM, AUDIT_SUBJECT, OPENED_SUBJECT, SETTLED_SUBJECT, USAGE_STREAM, encode_usage
from actors.worker import Worker
from gateway.state_metrics import GatewayState
from gateway.streams import GatewayActor
from gateway.traces import RequestTraces
from gateway.usage_log import UsageLog
from gpu_worker.mock import MockEngine, mock_token
from observability.metrics import CacheMetrics, DecisionMetrics, LedgerMetrics, Metrics, SchedulerMetrics, WorkerMetrics
from observability.tracing import Tracing, setup_tracing
from policies.config import SchedulerConfig
from policies.vocabulary import (
    Request,
    Sampling,
    StepTimeCoefficients,
    Tenant,
    WorkerSpec,
    pack_tokens,
)

MODEL = "org/m-0.6B"  # a name that is no address by itself
VOCABULARY = 1000


class VirtualDevice(DeviceThread):
    """Runs steps on the event loop's clock instead of in a thread."""

    def __init__(
        self, engine: Any, *, on_result: Callable[[Any], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._engine = engine
        self._on_result = on_result
        self._loop = asyncio.get_running_loop()
        self._last_due = 0.0
        self._is_closed = False

    def submit(self, step: Any) -> None:
        handle = self._engine.launch(step)
        self._last_due = max(self._last_due, handle.due)
        self._loop.call_at(self._last_due, self._done, handle)

    def _done(self, handle: Any) -> None:
        if not self._is_closed:
            self._on_result(self._engine.collect(handle))

    async def reset(self) -> None:
        await asyncio.sleep(max(0.0, self._last_due - self._loop.time()) + 1e-6)
        self._engine.reset()

    async def close(self) -> None:
        self._is_closed = True


class OnTheSpot(Executor):
    """Runs what is submitted before it returns: virtual time does not pass."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class VirtualStack:
    """`start` and `kill` roles by name; `gateway` is the frontend."""

    def __init__(
        self,
        broker: MemoryBroker,
        directory: Path,
        *,
        spec: WorkerSpec,
        config: SchedulerConfig,
        tracing: Callable[[str], Tracing] | None = None,
    ) -> None:
        self.broker = broker
        self._directory = directory
        self._spec = spec
        self._config = config
        self._clock = asyncio.get_running_loop().time
        silent = setup_tracing("test", "0", data_dir=None, sample_ratio=0.0)
        self._tracing = tracing or (lambda role: silent)
        self.traces = RequestTraces()
        self._serving: dict[str, tuple[Node, asyncio.Task[None]]] = {}
        self.tenants = {"gold": Tenant(name="gold"), "free": Tenant(name="free")}
        self.gateway: GatewayActor
        self.scheduler: SchedulerActor
        self.worker_steps: list[int] = []
        #: Of the latest process of each name, `role.instance`.
        self.metrics: dict[str, Metrics] = {}

    async def start(self, role: str, instance: str) -> None:
        """Start one role instance, and wait until messages reach it."""
        node = await Node.connect(MemoryTransport(self.broker), role=role, instance=instance)
        actor = self._actor(role, instance, node)
        ready = asyncio.Event()
        task = asyncio.create_task(node.serve(actor, ready=ready))
        self._serving[f"{role}.{instance}"] = (node, task)
        await ready.wait()

    def node(self, role: str, instance: str) -> Node:
        """Of a role that runs."""
        return self._serving[f"{role}.{instance}"][0]

    async def kill(self, role: str, instance: str) -> None:
        """As kill -9 does: not a word to anybody."""
        node, task = self._serving.pop(f"{role}.{instance}")
        await node.transport.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self._serving):
            await self.kill(*name.split("."))

    def _actor(self, role: str, instance: str, node: Node) -> Actor:
        metrics = self.metrics[f"{role}.{instance}"] = Metrics(role, instance)
        metrics.add(NodeMetrics(node))
        if role == "worker":
            engine = MockEngine(self._spec, vocab_size=VOCABULARY, clock=self._clock, sleep=lambda seconds: None)
            return Worker(
                engine,
                tracing=self._tracing(role),
                metrics=WorkerMetrics(metrics),
                on_failure=lambda error: None,
                device=VirtualDevice,
            )
        if role == "scheduler":
            steps = StepMetrics(MODEL)
            self.scheduler = SchedulerActor(
                observers=(steps,),
                model=MODEL,
                config=self._config,
                metrics=SchedulerMetrics(metrics),
                blocks=CacheMetrics(metrics),
                tracing=self._tracing(role),
                settle=lambda record: self._settle(node, record),
                clock=self._clock,
            )
            metrics.add(steps)
            metrics.add(SchedulerState(self.scheduler, model=MODEL, clock=self._clock))
            return self.scheduler
        if role == "admission":
            decisions = DecisionMetrics(metrics)
            door = AdmissionActor(
                tenants=self.tenants, metrics=decisions, tracing=self._tracing(role), clock=self._clock, seed=1
            )
            metrics.add(AdmissionState(door, tenants=self.tenants, labels=metrics.tenants))
            return door
        if role == "ledger":
            books = SqliteLedger(self._directory / "usage.db")
            return Ledger(books, metrics=LedgerMetrics(metrics), executor=OnTheSpot())

        async def store(subject: str, payload: bytes, message_id: str) -> None:
            await node.transport.append(subject, payload, message_id=message_id)

        self.gateway = GatewayActor(
            models={}, usage=UsageLog(store, gateway=instance), clock=self._clock, traces=self.traces
        )
        metrics.add(GatewayState(self.gateway, tenants=self.tenants.values, labels=metrics.tenants))
        return self.gateway

    @staticmethod
    async def _settle(node: Node, record: UsageSettled) -> None:
        await node.transport.append(SETTLED_SUBJECT, encode_usage(record), message_id=f"{record.request}:settled")


@asynccontextmanager
async def virtual_stack(
    directory: Path,
    *,
    workers: int = 1,
    blocks: int = 256,
    slots: int = 8,
    tokens_per_step: int = 64,
    seed: int = 0,
    drop: float = 0.0,
    duplicate: float = 0.0,
    config: SchedulerConfig | None = None,
    tracing: Callable[[str], Tracing] | None = None,
) -> AsyncIterator[VirtualStack]:
    """A stack that is ready. Must run on a `VirtualClockLoop`."""
    spec = WorkerSpec(
        model=MODEL,
        device="mock",
        blocks=blocks,
        host_blocks=blocks,
        block_bytes=4096,
        slots=slots,
        tokens_per_step=tokens_per_step,
        max_context=1024,
        swap_bytes_per_s=1e9,
        step_time=StepTimeCoefficients(0.004, 0.003, 1e-5),
    )
    broker = MemoryBroker(seed=seed)
    async with AsyncExitStack() as cleanup:
        stack = VirtualStack(broker, directory, spec=spec, config=config or SchedulerConfig(), tracing=tracing)
        cleanup.push_async_callback(stack.close)
        setup = MemoryTransport(broker)
        await setup.open(role="admin", instance="setup")
        await setup.ensure_stream(USAGE_STREAM, [OPENED_SUBJECT, SETTLED_SUBJECT])
        await setup.ensure_stream(AUDIT_STREAM, [AUDIT_SUBJECT])
        await stack.start("ledger", "l0")
        await stack.start("admission", "a0")
        await stack.start("scheduler", instance_of(MODEL))
        for i in range(workers):
            await stack.start("worker", f"w{i}")
        await stack.start("gateway", "g0")
        await asyncio.sleep(1.0)  # attach, first reports of load
        broker.drop, broker.duplicate = drop, duplicate
        yield stack


def request(number: int, *, prompt: int = 20, outputs: int = 30, **changes: Any) -> Request:
    """A request with a prompt of its own."""
    return Request(
        id=f"r{number}",
        attempt=1,
        tenant=changes.pop("tenant", "gold"),
        model=MODEL,
        gateway="g0",
        prompt=pack_tokens([(number * 31 + i) % VOCABULARY for i in range(prompt)]),
        max_tokens=outputs,
        sampling=Sampling(seed=number),
        **changes,
    )


def expected(wanted: Request) -> list[int]:
    """The outputs of a request, wherever it runs and however often it is resumed."""
    prompt = len(wanted.prompt) // 4
    return [mock_token(wanted.sampling.seed, prompt + i, VOCABULARY) for i in range(wanted.max_tokens)]
