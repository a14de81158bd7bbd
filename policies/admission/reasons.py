"""Why a request is refused, and what its client is told.

A refusal is a fact: 429 is the tenant's own limit, 503 is our capacity. Every refusal carries one of these strings,
which are part of the API: they appear in error bodies, metrics and traces, and never change.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["HttpError", "Reason", "http_error"]


class Reason(StrEnum):
    """The stable name of a refusal."""

    ttft_unattainable = "ttft_unattainable"  # the first token would be late, the candidate's or an admitted one's
    tpot_unattainable = "tpot_unattainable"  # later tokens would be too slow, the candidate's or an admitted one's
    kv_exhausted = "kv_exhausted"  # the predicted peak of KV does not fit
    queue_full = "queue_full"  # the deferred requests are too many
    deadline_exceeded = "deadline_exceeded"  # the deadline passed while it was deferred
    overloaded = "overloaded"  # contracts need the capacity, and this request has none
    no_worker = "no_worker"  # the model is known, but nobody serves it now
    model_unknown = "model_unknown"
    requests_per_minute = "requests_per_minute"
    tokens_per_minute = "tokens_per_minute"
    concurrency = "concurrency"
    daily_budget = "daily_budget"
    unavailable = (
        "unavailable"  # a part that must answer does not: admission, the ledger's stream, a gateway that stops
    )
    cancelled = "cancelled"  # the client left while it waited; nobody reads this


class HttpError(msgspec.Struct, frozen=True):
    """A row of the gateway's error table. `retry`: whether coming back later can help."""

    status: int
    type: str
    code: str
    retry: bool


_RATE = HttpError(429, "rate_limit_error", "rate_limit_exceeded", True)
_CAPACITY = HttpError(503, "service_unavailable_error", "sla_unattainable", True)
_TABLE = {
    Reason.ttft_unattainable: _CAPACITY,
    Reason.tpot_unattainable: _CAPACITY,
    Reason.kv_exhausted: _CAPACITY,
    Reason.queue_full: _CAPACITY,
    Reason.deadline_exceeded: HttpError(503, "service_unavailable_error", "deadline_exceeded", True),
    Reason.overloaded: _CAPACITY,
    Reason.no_worker: HttpError(503, "service_unavailable_error", "model_not_ready", True),
    Reason.model_unknown: HttpError(404, "invalid_request_error", "model_not_found", False),
    Reason.requests_per_minute: _RATE,
    Reason.tokens_per_minute: _RATE,
    Reason.concurrency: _RATE,
    Reason.daily_budget: HttpError(429, "insufficient_quota", "insufficient_quota", False),
    Reason.unavailable: HttpError(503, "service_unavailable_error", "unavailable", True),
    Reason.cancelled: HttpError(503, "service_unavailable_error", "cancelled", False),
}


def http_error(reason: Reason) -> HttpError:
    """The HTTP status, error type and code that a client sees for `reason`. Total: every reason has a row."""
    return _TABLE[reason]
