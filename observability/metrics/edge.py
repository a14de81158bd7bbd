"""What clients got, against what they were promised. Owned by the gateway."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from observability.metrics.buckets import DURATION_S, OVERHEAD_S, TENANT_TPOT_S, TENANT_TTFT_S, TPOT_S, TTFT_S
from observability.metrics.registry import Metrics

__all__ = ["EdgeMetrics"]

_STATUSES = ("200", "400", "401", "404", "429", "500", "503")


class EdgeMetrics:
    """Requests as they end. `trace_id` (of a trace that is kept) becomes the exemplar of the bucket."""

    def __init__(self, metrics: Metrics, *, provider: str = "headgate") -> None:
        registry = metrics.registry
        self._tenants = metrics.tenants
        self._provider = provider
        common = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self._ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From the arrival of the request to its first token.",
            common,
            buckets=TTFT_S,
            registry=registry,
        )
        self._tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time of a token after the first, per request.",
            common,
            buckets=TPOT_S,
            registry=registry,
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the arrival of the request to its end.",
            (*common, "error_type"),
            buckets=DURATION_S,
            registry=registry,
        )
        self._tenant_ttft = Histogram(
            "headgate_ttft_seconds",
            "From the arrival of a tenant's request to its first token.",
            ("tenant",),
            buckets=TENANT_TTFT_S,
            registry=registry,
        )
        self._tenant_tpot = Histogram(
            "headgate_tpot_seconds",
            "Mean time of a token after the first, per request of a tenant.",
            ("tenant",),
            buckets=TENANT_TPOT_S,
            registry=registry,
        )
        self._requests = Counter(
            "headgate_requests_total",
            "Requests that are over, by outcome: stop, length, cancelled, error, or why they were refused.",
            ("tenant", "tier", "model", "outcome"),
            registry=registry,
        )
        self._responses = Counter(
            "headgate_http_responses_total",
            "Answers to requests for a generation, by HTTP status.",
            ("operation", "status"),
            registry=registry,
        )
        for operation in ("chat", "text_completion"):
            for status in _STATUSES:
                self._responses.labels(operation, status)
        self._eligible = Counter(
            "headgate_sla_eligible_total", "Admitted requests with this promise.", ("tenant", "slo"), registry=registry
        )
        self._attained = Counter(
            "headgate_sla_attained_total", "Those of them that kept it.", ("tenant", "slo"), registry=registry
        )
        self._overhead = Histogram(
            "headgate_overhead_seconds",
            "Time that Headgate adds itself, by stage.",
            ("stage",),
            buckets=OVERHEAD_S,
            registry=registry,
        )
        self._stages: dict[str, Histogram] = {}

    def finished(
        self,
        *,
        tenant: str,
        tier: str,
        model: str,
        outcome: str,
        operation: str = "chat",
        status: int = 0,
        duration_s: float,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        trace_id: str = "",
    ) -> None:
        """A request is over. `outcome`: stop, length, cancelled, error, or the code it was refused with.

        The model must be one that is served, or "" (an unknown one is the client's text, and no label). `status` 0:
        nothing was answered.
        """
        label = self._tenants(tenant)
        exemplar = {"trace_id": trace_id} if trace_id else None
        self._requests.labels(label, tier, model, outcome).inc()
        if status:
            self._responses.labels(operation, str(status)).inc()
        labels = (operation, self._provider, model)
        self._duration.labels(*labels, "" if outcome in ("stop", "length") else outcome).observe(duration_s)
        if ttft_s is not None:
            self._ttft.labels(*labels).observe(ttft_s, exemplar)
            self._tenant_ttft.labels(label).observe(ttft_s, exemplar)
        if tpot_s is not None:
            self._tpot.labels(*labels).observe(tpot_s, exemplar)
            self._tenant_tpot.labels(label).observe(tpot_s, exemplar)

    def promised(self, *, tenant: str, slo: str, attained: bool) -> None:
        """A request with a promise on `slo` (ttft or tpot) is over. For one that was cut short by its client or not
        judged: do not call.
        """
        label = self._tenants(tenant)
        self._eligible.labels(label, slo).inc()
        # Touched also when missed, so that the ratio of both exists from the first request on.
        self._attained.labels(label, slo).inc(1 if attained else 0)

    def overhead(self, stage: str, seconds: float) -> None:
        """`stage`: parse, validate, tokenise, admission, encode … : one of a handful, never from a request."""
        bound = self._stages.get(stage)
        if bound is None:
            bound = self._stages[stage] = self._overhead.labels(stage)
        bound.observe(seconds)
