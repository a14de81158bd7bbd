"""The spans of a request that only the scheduler can tell: `queue`, `prefill` and `decode`, recorded when it is over.

The scheduler's times are of its monotonic clock; they become wall-clock instants by the offset between both clocks
at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from observability.tracing import Event, Tracing
from policies.events import Finished, Preempted
from policies.vocabulary import Request, Tier

__all__ = ["record_request_spans"]


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
