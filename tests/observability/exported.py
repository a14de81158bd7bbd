"""Every metric that some process exports, by rendering the registries of all roles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from actors.admission import AdmissionActor
from actors.admission_metrics import AdmissionState
from actors.node_metrics import NodeMetrics
from actors.runtime import MemoryBroker, MemoryTransport, Node
from actors.scheduler import SchedulerActor
from actors.scheduler_metrics import SchedulerState
from actors.step_metrics import StepMetrics
from gateway.state_metrics import GatewayState
from gateway.streams import GatewayActor
from gateway.usage_log import UsageLog
from observability.metrics import (
    CacheMetrics,
    DecisionMetrics,
    EdgeMetrics,
    LedgerMetrics,
    Metrics,
    SchedulerMetrics,
    WorkerMetrics,
)
from observability.metrics.nats_server import NatsServerMetrics, Varz
from observability.tracing import setup_tracing
from policies.config import SchedulerConfig
from policies.vocabulary import Contract, Tenant

ROLES = ("gateway", "admission", "scheduler", "worker", "ledger")


class Exported(NamedTuple):
    """A metric: its type, its labels, and whose it is (`all`: of every process)."""

    type: str
    labels: tuple[str, ...]
    owner: str


async def registries() -> dict[str, Metrics]:
    """One of each role, with what its module in headgate/roles/ puts on it."""
    found = {role: Metrics(role, f"{role}0") for role in ROLES}
    broker = MemoryBroker()
    for role, metrics in found.items():
        node = await Node.connect(MemoryTransport(broker), role=role, instance=f"{role}0")
        metrics.add(NodeMetrics(node))
    tracing = setup_tracing("test", "0", data_dir=None, sample_ratio=0.0)
    tenants = {"gold": Tenant(name="gold", contract=Contract(ttft_ms=500, tpot_ms=50))}

    async def forget(*_: object, **__: object) -> None:
        return

    gateway = found["gateway"]
    EdgeMetrics(gateway)
    edge = GatewayActor(models={}, usage=UsageLog(forget, gateway="g0"))
    gateway.add(GatewayState(edge, tenants=lambda: list(tenants.values()), labels=gateway.tenants))
    admission = found["admission"]
    door = AdmissionActor(tenants=tenants, metrics=DecisionMetrics(admission, reasons=["overloaded"]), tracing=tracing)
    admission.add(AdmissionState(door, tenants=tenants, labels=admission.tenants))
    scheduling = found["scheduler"]
    steps = StepMetrics("m")
    scheduler = SchedulerActor(
        model="m",
        config=SchedulerConfig(),
        metrics=SchedulerMetrics(scheduling),
        blocks=CacheMetrics(scheduling),
        tracing=tracing,
        settle=forget,
        observers=(steps,),
    )
    scheduling.add(steps)
    scheduling.add(SchedulerState(scheduler, model="m", clock=asyncio.get_running_loop().time))
    WorkerMetrics(found["worker"])
    LedgerMetrics(found["ledger"])
    NatsServerMetrics(found["ledger"]).told("nats", Varz(server_name="nats"))
    return found


def catalogue(found: Mapping[str, Metrics]) -> dict[str, Exported]:
    """Every metric under the name that it has in PromQL, without the suffixes of a histogram."""
    exported: dict[str, Exported] = {}
    for role, metrics in found.items():
        labels = _labels_of_wrapped(metrics)
        for family in metrics.registry.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            known = labels.get(family.name, getattr(family, "_labelnames", ()))
            owner = "all" if name in exported and exported[name].owner != role else role
            exported[name] = Exported(family.type, tuple(known), owner)
    return exported


def series(exported: Mapping[str, Exported]) -> dict[str, tuple[str, ...]]:
    """Every name that a selector can have, with its labels."""
    found: dict[str, tuple[str, ...]] = {}
    for name, metric in exported.items():
        if metric.type == "histogram":
            found[f"{name}_bucket"] = (*metric.labels, "le")
            found[f"{name}_sum"] = found[f"{name}_count"] = metric.labels
        else:
            found[name] = metric.labels
    return found


def _labels_of_wrapped(metrics: Metrics) -> dict[str, tuple[str, ...]]:
    wrapped = [one for one in metrics.registry._collector_to_names if isinstance(one, MetricWrapperBase)]
    return {one._name: one._labelnames for one in wrapped}
