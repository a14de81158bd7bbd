"""The spans of a request that admission (`admission`) and the scheduler (`queue`, `prefill`, `decode`) can tell,
recorded afterwards.

The scheduler's times are of its monotonic clock; they become wall-clock instants by the offset between both clocks
at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from actors.messages import Decision
from observability.tracing import Event, Tracing
from policies.events import Finished, Preempted
from policies.vocabulary import Request, Tier

__all__ = ["record_admission_span", "record_request_spans"]


def record_request_spans(
    tracing: Tracing, request: Request, ended: Finished, preemptions: list[Preempted], *, clock_now: float
) -> None:
    """Record what the request lived through. Phases that it did not reach are absent."""
    if not request.traceparent:
        return
    offset_ns = time.time_ns() - int(clock_now * 1e9)

    def instant(seconds: float) -> int:
        return int(seconds * 1e9) + offset_ns

    common: dict[str, AttributeValue] = {
        "headgate.tenant": request.tenant,
        "headgate.tier": Tier(request.tier).name,
        "headgate.attempt": request.attempt,
    }

    def phase(name: str, start: float, end: float, attributes: Mapping[str, int], events: list[Event]) -> None:
        tracing.record(
            name,
            request_id=request.id,
            parent_traceparent=request.traceparent,
            start_unix_ns=instant(start),
            end_unix_ns=instant(end),
            attributes={**common, **attributes},
            events=events,
        )

    events: list[Event] = [
        ("preempted", instant(event.at), {"kind": event.kind, "lost_tokens": event.lost_tokens})
        for event in preemptions
    ]
    if ended.finish.name == "cancelled":
        events.append(("cancelled", instant(clock_now), {}))
    scheduled, first = ended.first_scheduled_at, ended.first_token_at
    phase(
        "queue",
        ended.queued_at,
        scheduled if scheduled is not None else clock_now,
        {},
        [] if scheduled is not None else events,
    )
    if scheduled is None:
        return
    tokens = {"headgate.prompt_tokens": ended.prompt_tokens, "headgate.cached_tokens": ended.cached_tokens}
    phase("prefill", scheduled, first if first is not None else clock_now, tokens, [] if first is not None else events)
    if first is not None:
        events.insert(0, ("first_token", instant(first), {}))
        phase("decode", first, clock_now, {"headgate.output_tokens": ended.generated}, events)


def record_admission_span(tracing: Tracing, request: Request, decision: Decision, *, since_unix_ns: int) -> None:
    """Record how it was decided: from the arrival at admission to the final word."""
    was_deferred = decision.outcome == "admitted" and decision.deferred_s > 0
    attributes: dict[str, AttributeValue] = {
        "headgate.tenant": request.tenant,
        "headgate.tier": Tier(request.tier).name,
        "headgate.decision": "deferred" if was_deferred else decision.outcome,
    }
    optional = {
        "headgate.deadline_ms": request.ttft_s,
        "headgate.predicted_ttft_ms": decision.predicted_ttft_s,
        "headgate.retry_after_ms": decision.retry_after_s,
    }
    attributes.update({name: round(1000 * value, 2) for name, value in optional.items() if value is not None})
    if decision.reason:
        attributes["headgate.reason"] = decision.reason
    tracing.record(
        "admission",
        request_id=request.id,
        parent_traceparent=request.traceparent,
        start_unix_ns=since_unix_ns,
        end_unix_ns=time.time_ns(),
        attributes=attributes,
    )
