"""Where spans become the SDK's: made from plain facts when they are over, and handed to the exporters.

The SDK's tracer starts, locks, bounds and cleans a span that may change until it ends. Ours are over when they are made
(see tracing.py), so `ReadableSpan` is filled directly: a third of the cost, and a span can be recorded late, under ids
that were given out long before.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from observability.traceparent import parse_traceparent

__all__ = ["MOST_EVENTS", "MOST_LINKS", "Event", "Recorder"]

#: An event of a span: (name, unix nanoseconds, attributes).
Event = tuple[str, int, Mapping[str, AttributeValue]]

#: What a span has room for; callers count what they leave out.
MOST_EVENTS = 64
MOST_LINKS = 64
_LONGEST_VALUE = 1024
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_UNSET = Status(StatusCode.UNSET)
_SCOPE = InstrumentationScope("headgate")


class Recorder:
    """Gives out ids, decides which traces are sampled, and records spans that are over. Thread-safe."""

    def __init__(self, resource: Resource, processors: Sequence[SpanProcessor], *, ratio: float) -> None:
        self._resource = resource
        self._processors = tuple(processors)
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        # A generator of its own: ids must not follow from a seed that somebody gives to the module's.
        self._bits = random.Random().getrandbits

    @property
    def exports(self) -> bool:
        """Whether spans go anywhere."""
        return bool(self._processors)

    def new_context(self, parent: SpanContext | None, *, sampled: bool | None = None) -> SpanContext:
        """Ids for a span. `sampled` None: as its parent, or by the ratio where it begins a trace."""
        if parent is not None:
            trace_id = parent.trace_id
            is_sampled = parent.trace_flags.sampled if sampled is None else sampled
        else:
            trace_id = self._bits(128) or 1
            is_sampled = (trace_id & TraceIdRatioBased.TRACE_ID_LIMIT) < self._bound if sampled is None else sampled
        return SpanContext(
            trace_id, self._bits(64) or 1, is_remote=False, trace_flags=_SAMPLED if is_sampled else _UNSAMPLED
        )

    @staticmethod
    def sampled(context: SpanContext) -> SpanContext:
        """The same ids, to be recorded."""
        return SpanContext(context.trace_id, context.span_id, is_remote=context.is_remote, trace_flags=_SAMPLED)

    def record(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        *,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue],
        events: Sequence[Event] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[str] = (),
        error: str = "",
    ) -> None:
        """Hand a span to the exporters. `context` must be sampled. Long texts and long lists are cut; invalid links
        are left out."""
        linked = [Link(link) for link in map(parse_traceparent, links[:MOST_LINKS]) if link is not None]
        span = ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            _bounded(attributes),
            [SdkEvent(event, _bounded(values), unix_ns) for event, unix_ns, values in events[:MOST_EVENTS]],
            linked,
            kind,
            None,
            Status(StatusCode.ERROR, error[:_LONGEST_VALUE]) if error else _UNSET,
            start_unix_ns,
            max(start_unix_ns, end_unix_ns),
            _SCOPE,
        )
        for processor in self._processors:
            processor.on_end(span)


def _bounded(attributes: Mapping[str, AttributeValue]) -> Mapping[str, AttributeValue]:
    for value in attributes.values():
        if isinstance(value, str) and len(value) > _LONGEST_VALUE:
            return {name: text[:_LONGEST_VALUE] if isinstance(text, str) else text for name, text in attributes.items()}
    return attributes
