"""Waiting, preemption, prefix reuse, memory and each tenant's share. Owned by the scheduler; and the worker's own."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from observability.metrics.buckets import QUEUE_S, STEP_S
from observability.metrics.registry import Metrics

__all__ = ["BLOCK_STATES", "LOSS_CAUSES", "CacheMetrics", "SchedulerMetrics", "WorkerMetrics"]

BLOCK_STATES = ("free", "used", "cached", "host")
#: Why a worker is given up: five heartbeats missed; it came back as another; it left in good order; no result in time;
#: it and the scheduler disagree on a step.
LOSS_CAUSES = ("missed", "epoch", "goodbye", "stalled", "mismatch")


class CacheMetrics:
    """KV blocks of workers."""

    def __init__(self, metrics: Metrics) -> None:
        self._blocks = Gauge(
            "headgate_kv_blocks",
            "KV blocks of a worker: free and used make up its memory; cached are those of either in the prefix index, "
            "host those that hold preempted requests.",
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
    """What happens to requests behind admission."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self._tenants = metrics.tenants
        self._queue = Histogram(
            "headgate_queue_seconds",
            "From submission to the first step of a request.",
            buckets=QUEUE_S,
            registry=registry,
        )
        preemptions = Counter("headgate_preemptions_total", "Preempted requests.", ("kind",), registry=registry)
        self._preemptions = {kind: preemptions.labels(kind) for kind in ("swap", "tail", "recompute")}
        self._lost_tokens = Counter(
            "headgate_preempt_lost_tokens_total", "Computed tokens given up by preemption.", registry=registry
        )
        self._swapped = Counter(
            "headgate_swapped_blocks_total", "KV blocks copied to the host for preempted requests.", registry=registry
        )
        self._hits = Counter("headgate_prefix_hit_tokens_total", "Prompt tokens found in the cache.", registry=registry)
        self._service = Counter(
            "headgate_tenant_service_tokens_total", "Tokens computed for a tenant.", ("tenant",), registry=registry
        )
        self._shed = Counter(
            "headgate_shed_total",
            "Admitted requests given up before they ran: they could not be in time any more.",
            registry=registry,
        )
        lost = Counter("headgate_workers_lost_total", "Workers given up, by cause.", ("cause",), registry=registry)
        self._workers_lost = {cause: lost.labels(cause) for cause in LOSS_CAUSES}

    def queued(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def preempted(self, kind: str, *, lost_tokens: int, swapped_blocks: int = 0) -> None:
        """`kind`: swap, tail or recompute. Swapped tokens are not lost."""
        self._preemptions[kind].inc()
        self.reclaimed(lost_tokens=lost_tokens, swapped_blocks=swapped_blocks)

    def reclaimed(self, *, lost_tokens: int, swapped_blocks: int) -> None:
        """A preempted request lost more of what it had kept."""
        self._lost_tokens.inc(lost_tokens)
        self._swapped.inc(swapped_blocks)

    def prefix_hit(self, tokens: int) -> None:
        self._hits.inc(tokens)

    def served(self, tenant: str, tokens: int) -> None:
        """Call it per request or per step and tenant, never per token."""
        self._service.labels(self._tenants(tenant)).inc(tokens)

    def shed(self) -> None:
        """A request was given up before it ran."""
        self._shed.inc()

    def worker_lost(self, cause: str) -> None:
        """`cause`: one of `LOSS_CAUSES`."""
        self._workers_lost[cause].inc()


class WorkerMetrics:
    """Owned by the worker; its label is the name that the scheduler knows it by."""

    def __init__(self, metrics: Metrics) -> None:
        self._step = Histogram(
            "headgate_step_seconds",
            "One forward pass, on the device.",
            ("worker",),
            buckets=STEP_S,
            registry=metrics.registry,
        ).labels(metrics.instance)

    def step(self, seconds: float) -> None:
        self._step.observe(seconds)
