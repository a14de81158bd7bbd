"""The registry of one process, and how it is told."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["Metrics", "TenantLabels"]


class TenantLabels:
    """Bounds the values of the `tenant` label: the first `limit` seen keep their names, the rest are `other`."""

    OTHER = "other"

    def __init__(self, limit: int = 200) -> None:
        self._limit = limit
        self._seen: set[str] = set()

    def __call__(self, tenant: str) -> str:
        if tenant in self._seen:
            return tenant
        if len(self._seen) >= self._limit:
            return self.OTHER
        self._seen.add(tenant)
        return tenant


class _Registry(CollectorRegistry):
    """Leaves out the `_created` series: a third more lines, read by nobody (the switch of the library is global)."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """The registry of one process, with what every role has: process_* (memory, CPU, files)."""

    def __init__(self, role: str, instance: str, *, tenants: TenantLabels | None = None) -> None:
        self.role = role
        self.instance = instance
        self.registry: CollectorRegistry = _Registry()
        self.tenants = tenants or TenantLabels()
        ProcessCollector(registry=self.registry)
        Gauge(
            "headgate_up", "1 while the process serves /metrics.", ("role", "instance"), registry=self.registry
        ).labels(role, instance).set(1)

    def add(self, collector: Collector) -> None:
        """Ask `collector` too, at each scrape: for what is known elsewhere, and costs nothing until somebody looks."""
        self.registry.register(collector)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The body of /metrics and its content type, in the format that the Accept header asks for: OpenMetrics, with
        exemplars, or the plain text of Prometheus."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
