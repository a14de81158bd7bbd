"""Prometheus metrics: the names of the design, each owned by the one role that knows the value first-hand.

A process has one `Metrics` (registry and rendering) and the groups of its role on it. No module-level registry: tests
and several roles in one process do not mix. Labelled children are bound once wherever a label set is known beforehand,
since a bound counter costs 0.33 µs and a look-up by labels 1.3. Nothing here is called per token.

The `gen_ai_server_*` names, units and bucket edges are those of the OpenTelemetry semantic conventions for generative
AI.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

__all__ = [
    "BLOCK_STATES",
    "CacheMetrics",
    "DecisionMetrics",
    "EdgeMetrics",
    "LedgerMetrics",
    "Metrics",
    "SchedulerMetrics",
    "TenantLabels",
    "WorkerMetrics",
]

BLOCK_STATES = ("free", "used", "cached", "host")

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_QUEUE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_OVERHEAD_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1)
_STEP_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_RETRY_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0, 3600.0)
_RATIO = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0)


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
    """The registry of one process, with what every role has: process_* (memory, CPU, files) and refused mailboxes."""

    def __init__(self, role: str, instance: str, *, tenants: TenantLabels | None = None) -> None:
        self.registry: CollectorRegistry = _Registry()
        self.tenants = tenants or TenantLabels()
        ProcessCollector(registry=self.registry)
        Gauge(
            "headgate_up", "1 while the process serves /metrics.", ("role", "instance"), registry=self.registry
        ).labels(role, instance).set(1)
        self._refused = Counter(
            "headgate_mailbox_refused_total",
            "Messages answered Busy: mailbox full.",
            ("actor",),
            registry=self.registry,
        )

    def mailbox_refused(self, actor: str) -> None:
        self._refused.labels(actor).inc()

    def render(self) -> tuple[bytes, str]:
        """The body of /metrics and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class EdgeMetrics:
    """Owned by the gateway: what clients got, against what they were promised."""

    def __init__(self, metrics: Metrics, *, provider: str = "headgate") -> None:
        registry = metrics.registry
        self._tenants = metrics.tenants
        self._provider = provider
        common = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the arrival of the request to its first token.",
            common,
            buckets=_TTFT_S,
            registry=registry,
        )
        self._tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time of a token after the first, per request.",
            common,
            buckets=_TPOT_S,
            registry=registry,
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the arrival of the request to its end.",
            (*common, "error_type"),
            buckets=_DURATION_S,
            registry=registry,
        )
        self._requests = Counter(
            "headgate_requests_total",
            "Requests that are over, by outcome.",
            ("tenant", "tier", "model", "outcome"),
            registry=registry,
        )
        self._eligible = Counter(
            "headgate_sla_eligible_total", "Admitted requests with this promise.", ("tenant", "slo"), registry=registry
        )
        self._attained = Counter(
            "headgate_sla_attained_total", "Those of them that kept it.", ("tenant", "slo"), registry=registry
        )
        overhead = Histogram(
            "headgate_overhead_seconds",
            "Time that Headgate adds itself, by stage.",
            ("stage",),
            buckets=_OVERHEAD_S,
            registry=registry,
        )
        self._overhead = overhead
        self._stages: dict[str, Histogram] = {}

    def finished(
        self,
        *,
        tenant: str,
        tier: str,
        model: str,
        outcome: str,
        operation: str = "chat",
        duration_s: float,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
    ) -> None:
        """A request is over. `outcome`: stop, length, cancelled, error, or the code it was refused with.

        The model must be one that is served, or "" (an unknown one is the client's text, and no label).
        """
        self._requests.labels(self._tenants(tenant), tier, model, outcome).inc()
        labels = (operation, self._provider, model)
        self._duration.labels(*labels, "" if outcome in ("stop", "length") else outcome).observe(duration_s)
        if ttft_s is not None:
            self._ttft.labels(*labels).observe(ttft_s)
        if tpot_s is not None:
            self._tpot.labels(*labels).observe(tpot_s)

    def promised(self, *, tenant: str, slo: str, attained: bool) -> None:
        """A request with a promise on `slo` (ttft or tpot) is over, cut short by its client or not judged: do not
        call.
        """
        label = self._tenants(tenant)
        self._eligible.labels(label, slo).inc()
        # Touched also when missed, so that the ratio of both exists from the first request on.
        self._attained.labels(label, slo).inc(1 if attained else 0)

    def overhead(self, stage: str, seconds: float) -> None:
        """`stage`: authenticate, parse, tokenise, admission, first_token … : one of a handful, never from a request."""
        bound = self._stages.get(stage)
        if bound is None:
            bound = self._stages[stage] = self._overhead.labels(stage)
        bound.observe(seconds)


class DecisionMetrics:
    """Owned by admission where it is scraped; a gateway may keep its own count of the decisions it was answered."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._decisions = Counter(
            "headgate_admission_decisions_total",
            "Decisions: admitted, deferred (then admitted or refused too) and refused, with the reason.",
            ("decision", "reason"),
            registry=registry,
        )
        self._retry_after = Histogram(
            "headgate_retry_after_seconds", "Told to refused clients.", buckets=_RETRY_S, registry=registry
        )
        self._ratio = Histogram(
            "headgate_prediction_error_ratio",
            "Measured over predicted TTFT of the admitted.",
            buckets=_RATIO,
            registry=registry,
        )

    def decided(self, decision: str, reason: str = "", *, retry_after_s: float | None = None) -> None:
        self._decisions.labels(decision, reason).inc()
        if retry_after_s is not None:
            self._retry_after.observe(retry_after_s)

    def predicted(self, *, predicted_s: float, measured_s: float) -> None:
        if predicted_s > 0:
            self._ratio.observe(measured_s / predicted_s)


class CacheMetrics:
    """KV blocks of workers: first-hand at the scheduler; at a gateway as heard on the bus."""

    def __init__(self, metrics: Metrics) -> None:
        self._blocks = Gauge(
            "headgate_kv_blocks",
            "KV blocks of a worker, by state.",
            ("model", "worker", "state"),
            registry=metrics.registry,
        )

    def blocks(self, *, model: str, worker: str, counts: dict[str, int]) -> None:
        """`counts` by `BLOCK_STATES`; a state that is left out keeps its value."""
        for state, count in counts.items():
            self._blocks.labels(model, worker, state).set(count)

    def gone(self, *, model: str, worker: str) -> None:
        """The worker died: a gauge that nobody refreshes would lie for ever."""
        self._blocks.remove_by_labels({"model": model, "worker": worker})


class SchedulerMetrics:
    """Owned by the scheduler: waiting, preemption, prefix reuse, and each tenant's share."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._tenants = metrics.tenants
        self._queue = Histogram(
            "headgate_queue_seconds",
            "From submission to the first step of a request.",
            buckets=_QUEUE_S,
            registry=registry,
        )
        preemptions = Counter("headgate_preemptions_total", "Preempted requests.", ("kind",), registry=registry)
        self._preemptions = {kind: preemptions.labels(kind) for kind in ("swap", "tail", "recompute")}
        self._lost = Counter(
            "headgate_preempt_lost_tokens_total", "Computed tokens given up by preemption.", registry=registry
        )
        self._hits = Counter("headgate_prefix_hit_tokens_total", "Prompt tokens found in the cache.", registry=registry)
        self._service = Counter(
            "headgate_tenant_service_tokens_total", "Tokens computed for a tenant.", ("tenant",), registry=registry
        )

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def preempted(self, kind: str, *, lost_tokens: int) -> None:
        """`kind`: swap, tail or recompute. Swapped tokens are not lost."""
        self._preemptions[kind].inc()
        self._lost.inc(lost_tokens)

    def prefix_hit(self, tokens: int) -> None:
        self._hits.inc(tokens)

    def served(self, tenant: str, tokens: int) -> None:
        """Call it per request or per step and tenant, never per token."""
        self._service.labels(self._tenants(tenant)).inc(tokens)


class WorkerMetrics:
    """Owned by the worker."""

    def __init__(self, metrics: Metrics) -> None:
        self._step = Histogram(
            "headgate_step_seconds", "One forward pass, on the device.", buckets=_STEP_S, registry=metrics.registry
        )

    def step(self, seconds: float) -> None:
        self._step.observe(seconds)


class LedgerMetrics:
    """Owned by the ledger."""

    def __init__(self, metrics: Metrics) -> None:
        self._unsettled = Gauge(
            "headgate_ledger_unsettled", "Requests written ahead and not settled yet.", registry=metrics.registry
        )

    def unsettled(self, requests: int) -> None:
        self._unsettled.set(requests)
