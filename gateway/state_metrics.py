"""The state of a gateway as metrics, asked for at each scrape: streams, contracts, and who is heard on the bus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gateway.streams import RESUMED, GatewayActor
from observability.metrics import TenantLabels
from policies.vocabulary import Tenant

__all__ = ["GatewayState"]


class GatewayState:
    """A collector for the registry of the process. `tenants` gives those of the live directory.

    Every gateway knows all contracts, and tells them beside what its clients got: a sum over gateways takes the
    largest.
    """

    def __init__(self, actor: GatewayActor, *, tenants: Callable[[], Iterable[Tenant]], labels: TenantLabels) -> None:
        self._actor = actor
        self._tenants = tenants
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        admitted, asking = self._actor.open_streams
        streams = GaugeMetricFamily(
            "headgate_open_streams",
            "Requests of clients under way: asking (no decision yet) or admitted.",
            labels=("state",),
        )
        streams.add_metric(("admitted",), admitted)
        streams.add_metric(("asking",), asking)
        yield streams
        resumed = CounterMetricFamily(
            "headgate_resumed_streams",
            "Streams that went on elsewhere, or again, after something behind the gateway failed.",
            labels=("why",),
        )
        for why in RESUMED:
            resumed.add_metric((why,), self._actor.resumed[why])
        yield resumed
        age = GaugeMetricFamily(
            "headgate_heartbeat_age_seconds",
            "Since the latest heartbeat of a process; told for half a minute after the last.",
            labels=("role", "peer"),
        )
        for peer in self._actor.view.heartbeats():
            age.add_metric((peer.role, peer.instance), peer.age_s)
        yield age
        yield from self._contracts()

    def _contracts(self) -> Iterator[Metric]:
        ttft = GaugeMetricFamily(
            "headgate_contract_ttft_seconds", "Promised time to the first token, of a short prompt.", labels=("tenant",)
        )
        per_1k = GaugeMetricFamily(
            "headgate_contract_ttft_per_1k_seconds",
            "Added to the promised time to the first token for every 1,000 prompt tokens.",
            labels=("tenant",),
        )
        tpot = GaugeMetricFamily(
            "headgate_contract_tpot_seconds",
            "Promised time of each later token, on average over a request.",
            labels=("tenant",),
        )
        attainment = GaugeMetricFamily(
            "headgate_contract_attainment", "Promised share of requests that keep a promise.", labels=("tenant", "slo")
        )
        weight = GaugeMetricFamily("headgate_contract_weight", "Share inside the tier.", labels=("tenant",))
        for tenant in self._tenants():
            contract = tenant.contract
            if contract.ttft_ms is None and contract.tpot_ms is None:
                continue  # its label is left to those that come, if there are many
            name = self._labels(tenant.name)
            if name == TenantLabels.OTHER:
                continue  # counted with others, against no promise in particular
            weight.add_metric((name,), contract.weight)
            if contract.ttft_ms is not None:
                ttft.add_metric((name,), contract.ttft_ms / 1000)
                per_1k.add_metric((name,), contract.ttft_per_1k_ms / 1000)
                attainment.add_metric((name, "ttft"), contract.attainment)
            if contract.tpot_ms is not None:
                tpot.add_metric((name,), contract.tpot_ms / 1000)
                attainment.add_metric((name, "tpot"), contract.attainment)
        yield from (ttft, per_1k, tpot, attainment, weight)
