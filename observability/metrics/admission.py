"""What admission decides. Owned by the admission actor."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from observability.metrics.buckets import DECISION_S, QUEUE_S, RATIO, RETRY_S
from observability.metrics.registry import Metrics

__all__ = ["DecisionMetrics"]

_TIERS = ("priority", "default", "flex")


class DecisionMetrics:
    """`reasons`: the names that a refusal can have. Their series exist from the start, so that the first refusal of a
    kind is seen as a rise."""

    def __init__(self, metrics: Metrics, *, reasons: Iterable[str] = ()) -> None:
        registry = metrics.registry
        self._decisions = Counter(
            "headgate_admission_decisions_total",
            "Decisions: admitted, deferred (then admitted or refused too) and refused, with the reason.",
            ("decision", "reason", "tier"),
            registry=registry,
        )
        for tier in _TIERS:
            self._decisions.labels("admitted", "", tier)
            for reason in reasons:
                self._decisions.labels("refused", reason, tier)
                self._decisions.labels("deferred", reason, tier)
        self._retry_after = Histogram(
            "headgate_retry_after_seconds", "Told to refused clients.", buckets=RETRY_S, registry=registry
        )
        self._ratio = Histogram(
            "headgate_prediction_error_ratio",
            "Measured over predicted TTFT of the admitted.",
            buckets=RATIO,
            registry=registry,
        )
        self._deferred = Histogram(
            "headgate_deferred_seconds",
            "How long a deferred request waited for its answer.",
            buckets=QUEUE_S,
            registry=registry,
        )
        self._taken = Histogram(
            "headgate_admission_seconds",
            "Time that a decision takes, without waiting.",
            buckets=DECISION_S,
            registry=registry,
        )

    def decided(
        self,
        decision: str,
        reason: str = "",
        *,
        tier: str = "",
        retry_after_s: float | None = None,
        deferred_s: float = 0.0,
    ) -> None:
        """`deferred_s`: it was deferred, and is answered so long after it came."""
        self._decisions.labels(decision, reason, tier).inc()
        if retry_after_s is not None:
            self._retry_after.observe(retry_after_s)
        if deferred_s > 0:
            self._deferred.observe(deferred_s)

    def took(self, seconds: float) -> None:
        """A request was looked at for the first time."""
        self._taken.observe(seconds)

    def predicted(self, *, predicted_s: float, measured_s: float) -> None:
        """The first token of one that was admitted is out."""
        if predicted_s > 0:
            self._ratio.observe(measured_s / predicted_s)
