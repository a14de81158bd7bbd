"""How far the ledger is with writing down usage and changes. Owned by the ledger."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from observability.metrics.buckets import BATCH, FOLD_S
from observability.metrics.registry import Metrics

__all__ = ["LedgerMetrics"]

_STREAMS = ("usage", "audit")


class LedgerMetrics:
    """`stream`: usage or audit."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._unsettled = Gauge(
            "headgate_ledger_unsettled", "Requests written ahead and not settled yet.", registry=registry
        )
        self._lag = Gauge(
            "headgate_ledger_lag_messages",
            "Records in the stream that are not folded yet.",
            ("stream",),
            registry=registry,
        )
        self._batch = Histogram(
            "headgate_ledger_batch_records",
            "Records folded in one transaction.",
            ("stream",),
            buckets=BATCH,
            registry=registry,
        )
        self._fold = Histogram(
            "headgate_ledger_fold_seconds",
            "Time of one transaction.",
            ("stream",),
            buckets=FOLD_S,
            registry=registry,
        )
        for stream in _STREAMS:
            self._batch.labels(stream)
            self._fold.labels(stream)
        self._unreadable = Counter(
            "headgate_ledger_unreadable_total", "Usage records left out: they cannot be read.", registry=registry
        )

    def unsettled(self, requests: int) -> None:
        self._unsettled.set(requests)

    def lag(self, stream: str, messages: int) -> None:
        """Not folded yet, those that are being folded included."""
        self._lag.labels(stream).set(messages)

    def folded(self, stream: str, *, records: int, seconds: float) -> None:
        """A batch is written."""
        self._batch.labels(stream).observe(records)
        self._fold.labels(stream).observe(seconds)

    def unreadable(self) -> None:
        self._unreadable.inc()
