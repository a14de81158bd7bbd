"""What is told of a row: events, and its part in the load of its worker."""

from __future__ import annotations

from math import inf

from policies.events import Finished, FirstToken, Scheduled
from policies.rows import Place, Row
from policies.vocabulary import BLOCK_SIZE, RequestLoad

__all__ = ["finished", "first_token", "request_load", "scheduled"]


def scheduled(row: Row, step: int) -> Scheduled:
    """The row just got its first slot, in this step."""
    request = row.request
    at = row.queued_at if row.first_scheduled_at is None else row.first_scheduled_at
    return Scheduled(
        request.id, request.attempt, request.tenant, request.gateway, row.queued_at, at, row.cached_tokens, step
    )


def first_token(row: Row, now: float) -> FirstToken:
    """The row's first output just came."""
    request = row.request
    scheduled_at = row.queued_at if row.first_scheduled_at is None else row.first_scheduled_at
    late_s = None if row.deadline == inf else now - row.deadline
    return FirstToken(
        request.id, request.attempt, request.tenant, request.gateway, row.queued_at, scheduled_at, now, late_s
    )


def finished(row: Row, now: float) -> Finished:
    """The row is over, and nothing of it is in flight."""
    request = row.request
    return Finished(
        request.id,
        request.attempt,
        request.tenant,
        request.gateway,
        row.finish,
        row.prompt_tokens,
        row.generated,
        row.cached_tokens,
        row.preemptions,
        row.queued_at,
        row.first_scheduled_at,
        row.first_token_at,
        now,
    )


def request_load(row: Row, now: float) -> RequestLoad:
    """The row as admission sees it. One that waits is to come with all that it has no device blocks for, wherever that
    is: a request on the host holds no memory, but will."""
    left, context = max(1, row.behind), row.computed
    if row.place is Place.waiting:
        context = min(row.saved, len(row.blocks) * BLOCK_SIZE)
        left = max(1, len(row.tokens) - context)
    has_deadline = row.first_token_at is None and row.deadline < inf
    return RequestLoad(
        row.request.id,
        row.tier,
        left,
        context,
        row.generated,
        row.end - len(row.tokens),
        row.deadline - now if has_deadline else None,
        row.tpot_s,
        row.lead_s(now),
        row.place is Place.waiting,
    )
