"""The state of admission as metrics, asked for at each scrape: who waits, how much is given up, what is held back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from actors.admission import AdmissionActor
from observability.metrics import TenantLabels
from policies.vocabulary import Tenant, Tier

__all__ = ["AdmissionState"]


class AdmissionState:
    """A collector for the registry of the process. `tenants` is the live directory."""

    def __init__(self, actor: AdmissionActor, *, tenants: Mapping[str, Tenant], labels: TenantLabels) -> None:
        self._actor = actor
        self._tenants = tenants
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        core = self._actor.core
        counts: Counter[int] = Counter()
        for group in self._actor.deferred:
            counts[group.tier] += group.count
        waiting = GaugeMetricFamily(
            "headgate_admission_waiting", "Deferred requests that wait for their answer.", labels=("tier",)
        )
        for tier in Tier:
            waiting.add_metric((tier.name,), counts[tier])
        yield waiting
        level = GaugeMetricFamily(
            "headgate_overload_level",
            "What is given up: 0 nothing, 1 shrink, 2 defer, 3 relegate, 4 refuse, 5 offload.",
            labels=("model",),
        )
        for model, reached in core.levels().items():
            level.add_metric((model,), reached)
        yield level
        margin = GaugeMetricFamily(
            "headgate_admission_margin_ratio",
            "Share of a promise that admission holds back, so that the attainment comes back to its target.",
            labels=("tenant", "slo"),
        )
        for tenant in list(self._tenants.values()):
            contract = tenant.contract
            if contract.ttft_ms is None and contract.tpot_ms is None:
                continue
            label = self._labels(tenant.name)
            if label == TenantLabels.OTHER:
                continue
            ttft, tpot = core.margins(tenant.name, Tier[contract.tier])
            margin.add_metric((label, "ttft"), ttft)
            margin.add_metric((label, "tpot"), tpot)
        yield margin
