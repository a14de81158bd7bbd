"""Prometheus metrics: the names of the design, each owned by the one role that knows the value first-hand.

A process has one `Metrics` (registry and rendering) and the groups of its role on it. No module-level registry: tests
and several roles in one process do not mix. Labelled children are bound once wherever a label set is known beforehand,
since a bound counter costs 0.33 µs and a look-up by labels 1.3. What happens at every step is counted in plain ints
(`tally`), and what can be asked for is asked at the scrape. Nothing here is called per token.
"""

from __future__ import annotations

from observability.metrics.admission import DecisionMetrics
from observability.metrics.edge import EdgeMetrics
from observability.metrics.ledger import LedgerMetrics
from observability.metrics.registry import Metrics, TenantLabels
from observability.metrics.scheduling import BLOCK_STATES, LOSS_CAUSES, CacheMetrics, SchedulerMetrics, WorkerMetrics
from observability.metrics.tally import Tally

__all__ = [
    "BLOCK_STATES",
    "LOSS_CAUSES",
    "CacheMetrics",
    "DecisionMetrics",
    "EdgeMetrics",
    "LedgerMetrics",
    "Metrics",
    "SchedulerMetrics",
    "Tally",
    "TenantLabels",
    "WorkerMetrics",
]
