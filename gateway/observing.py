"""Metrics and spans of the edge: what `gateway.hooks` tells, counted and traced."""

from __future__ import annotations

import time

from opentelemetry.util.types import AttributeValue

from actors.messages import Decision
from gateway.hooks import Observer
from gateway.traces import RequestTraces
from observability.metrics import EdgeMetrics
from observability.tracing import Tracing
from policies.vocabulary import Request, Tier

__all__ = ["EdgeHooks"]

_STAGES = {
    "parse": "headgate.parse_ms",
    "tokenise": "headgate.tokenise_ms",
    "validate": "headgate.validate_ms",
    "encode": "headgate.encode_ms",
}


class EdgeHooks:
    """Makes one observer a request: a SERVER span, and the counters of the edge."""

    def __init__(self, metrics: EdgeMetrics, tracing: Tracing, traces: RequestTraces | None = None) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._traces = traces or RequestTraces()

    def start(self, route: str, *, request_id: str, traceparent: str | None) -> Observer:
        return _Observer(route, request_id, traceparent, self._metrics, self._tracing, self._traces)


class _Observer:
    def __init__(
        self,
        route: str,
        request_id: str,
        traceparent: str | None,
        metrics: EdgeMetrics,
        tracing: Tracing,
        traces: RequestTraces,
    ) -> None:
        self._metrics = metrics
        self._traces = traces
        self._span = tracing.start_request(route, request_id=request_id, traceparent=traceparent)
        self._operation = "text_completion" if route.endswith("/v1/completions") else "chat"
        self._first: Request | None = None
        self._asked: list[str] = []
        self._admitted = False
        self._ttft_s: dict[str, float] = {}
        self._tpot_s: float | None = None
        self._output_tokens = 0
        self._attempts = 1
        self._is_late = False
        self._started = time.perf_counter()
        self._allowed_s: float | None = None  # from the arrival of the HTTP request to the first token
        self._outcome = ""
        self.traceparent = self._span.traceparent

    def stage(self, name: str, seconds: float) -> None:
        self._metrics.overhead(name, seconds)
        if name in _STAGES:
            self._span.set_attribute(_STAGES[name], round(seconds * 1000, 3))

    def asked(self, request: Request, *, tenant: str, key: str, stream: bool) -> None:
        self._asked.append(request.id)
        self._traces.opened(request.id, self._span)
        if self._first is None:
            self._first = request
            if request.ttft_s is not None:
                self._allowed_s = request.ttft_s + time.perf_counter() - self._started
            self._span.set_attributes(
                {
                    "headgate.tenant": tenant,
                    "headgate.key": key,
                    "headgate.tier": Tier(request.tier).name,
                    "gen_ai.operation.name": self._operation,
                    "gen_ai.provider.name": "headgate",
                    "gen_ai.request.model": request.model,
                    "gen_ai.request.max_tokens": request.max_tokens,
                    "gen_ai.usage.input_tokens": len(request.prompt) // 4,
                    "headgate.stream": stream,
                    **_promises(self._allowed_s, request.tpot_s),
                }
            )

    def decided(self, request: Request, decision: Decision, waited_s: float) -> None:
        self._metrics.overhead("admission", waited_s - decision.deferred_s)
        self._span.set_attribute("headgate.admission_wait_ms", round(waited_s * 1000, 3))
        if decision.outcome == "admitted":
            self._admitted = True
        else:
            self._outcome = decision.reason
            self._span.set_attribute("headgate.reason", decision.reason)

    def first_token(self, request: Request, ttft_s: float) -> None:
        self._ttft_s[request.id] = ttft_s
        self._span.add_event("first_token", {"headgate.ttft_ms": round(ttft_s * 1000, 2)})
        if self._allowed_s is not None and ttft_s > self._allowed_s:
            self._is_late = True

    def generated(
        self, request: Request, *, output_tokens: int, cached_tokens: int, tpot_s: float | None, finish: str
    ) -> None:
        self._outcome = finish
        self._tpot_s = tpot_s
        self._output_tokens += output_tokens
        self._attempts = max(self._attempts, request.attempt)
        if request.tpot_s is not None and tpot_s is not None and tpot_s > request.tpot_s:
            self._is_late = True
        self._span.set_attributes(
            {"gen_ai.usage.output_tokens": self._output_tokens, "gen_ai.response.finish_reasons": (finish,)}
        )
        if finish == "cancelled":
            return  # cut short by its client
        # One that failed has missed its promise: alerts see it, as admission and the live page do.
        ttft_s = self._ttft_s.get(request.id)
        if self._allowed_s is not None:
            kept = finish != "error" and ttft_s is not None and ttft_s <= self._allowed_s
            self._metrics.promised(tenant=request.tenant, slo="ttft", attained=kept)
        if request.tpot_s is not None and tpot_s is not None:
            self._metrics.promised(tenant=request.tenant, slo="tpot", attained=tpot_s <= request.tpot_s)

    def finished(self, *, status: int, outcome: str, seconds: float) -> None:
        self._end_span(status, outcome, seconds)
        request = self._first
        self._metrics.finished(
            tenant=request.tenant if request else "",
            tier=Tier(request.tier).name if request else "",
            model=request.model if request else "",
            outcome=(self._outcome or outcome) if outcome in ("ok", "refused") else outcome,
            operation=self._operation,
            duration_s=seconds,
            ttft_s=next(iter(self._ttft_s.values()), None),
            tpot_s=self._tpot_s,
            status=status,
            trace_id=self.traceparent[3:35] if self._span.is_kept else "",
        )

    def _end_span(self, status: int, outcome: str, seconds: float) -> None:
        span = self._span
        if outcome == "cancelled":
            span.add_event("cancelled")
        if self._allowed_s is not None and not self._ttft_s and self._admitted and seconds > self._allowed_s:
            self._is_late = True  # its client gave up waiting
        span.set_attributes(
            {
                "http.response.status_code": status,
                "headgate.outcome": outcome,
                "headgate.late": self._is_late,
                "headgate.attempts": self._attempts,
            }
        )
        if self._tpot_s is not None:
            span.set_attribute("headgate.tpot_ms", round(self._tpot_s * 1000, 3))
        if status >= 500 or outcome == "error":
            span.fail(self._outcome or outcome)
        if outcome in ("refused", "error") or self._is_late:
            span.keep()
        self._traces.closed(self._asked, span, reached_others=self._admitted)


def _promises(ttft_s: float | None, tpot_s: float | None) -> dict[str, AttributeValue]:
    found = {"headgate.deadline_ms": ttft_s, "headgate.deadline_tpot_ms": tpot_s}
    return {name: round(1000 * seconds, 2) for name, seconds in found.items() if seconds is not None}
