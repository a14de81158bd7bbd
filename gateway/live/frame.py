"""A frame: what the live page and `headgate top` show, of one moment, in the units of the fields' names.

None is what is not known. The stack's facts are soft: a part that was restarted, or is away, has told nothing yet.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "DecisionRow",
    "Frame",
    "KvRow",
    "Promise",
    "Promised",
    "QueueRow",
    "RunningRow",
    "Slack",
    "StepRow",
    "TenantRow",
    "WorkerRow",
]


class Promised(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's contract."""

    ttft_ms: float | None
    ttft_per_1k_ms: float
    tpot_ms: float | None
    attainment: float


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """How one figure of it was kept in the last five minutes. Quantiles are within 3 % of the measured."""

    judged: int = 0
    kept: int = 0
    share: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, now and in the last five minutes."""

    name: str
    tier: str
    weight: float
    contract: Promised
    ttft: Promise
    tpot: Promise
    kept: bool | None  # both shares at or above the attainment; None: nothing judged, or nothing promised
    running: int  # in slots of workers
    waiting: int  # for a slot, or deferred by admission
    admitted: int
    deferred: int
    refused: dict[str, int]  # by reason
    service_share: float | None  # of the tokens computed in the last minute
    history: list[float | None]  # attained share, the worse of both, in 60 periods of 5 s, oldest first


class DecisionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What admission said of a request. `sequence` grows from one to the next, for as long as this gateway runs."""

    sequence: int
    at: float  # unix seconds
    request: str
    tenant: str
    tier: str
    model: str
    outcome: str  # admitted | deferred | refused
    reason: str
    message: str
    measured: float | None
    threshold: float | None
    predicted_ttft_ms: float | None
    predicted_tpot_ms: float | None
    deadline_ms: float | None
    retry_after_ms: float | None
    deferred_ms: float | None
    prompt_tokens: int
    max_tokens: int


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """A step that came back."""

    model: str
    worker: str
    number: int
    at: float  # unix seconds
    prefill_tokens: int
    decode_tokens: int
    rows: int
    predicted_ms: float
    actual_ms: float


class KvRow(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks of a worker, by state (free, used, cached, host), and those in use by tenant."""

    model: str
    worker: str
    states: dict[str, int]
    owners: dict[str, int]  # a block that several requests share counts for each of them


class Slack(msgspec.Struct, frozen=True, kw_only=True):
    """How much later those who wait could begin and be in time, of those with a promise."""

    min: float | None = None
    p50: float | None = None


class QueueRow(msgspec.Struct, frozen=True, kw_only=True):
    """Those of a model and tier who wait: for a slot, for any worker, or deferred by admission."""

    model: str
    tier: str
    waiting: int
    slack_ms: Slack


class RunningRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request in a slot, or preempted."""

    request: str
    tenant: str
    tier: str
    model: str
    worker: str
    phase: str  # prefill | decode | preempted
    prompt_tokens: int
    computed: int
    generated: int
    slack_ms: float | None


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A worker: as its heartbeats tell it, and as its scheduler sees it."""

    model: str | None
    worker: str
    instance: str
    epoch: int | None
    heartbeat_age_ms: float | None
    state: str | None
    steps_per_s: float | None
    rows: int | None
    slots: int | None
    device: str | None


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One moment. In a frame that is not `full`, `steps` and `decisions` have only what is new since the one before on
    the same stream; all else is whole in every frame. Both are oldest first."""

    at: float  # unix seconds
    gateway: str
    full: bool
    models: list[str]
    tenants: list[TenantRow]
    decisions: list[DecisionRow]
    steps: list[StepRow]
    kv: list[KvRow]
    queue: list[QueueRow]
    running: list[RunningRow]  # tightest slack first
    workers: list[WorkerRow]
    processes: list[dict[str, object]]
