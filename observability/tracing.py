"""Tracing of one process: where its spans go, and how the actors make them.

A request is about six spans, made once each; there are none per token. Most of what a request lives through (queue,
prefill, decode) is known only afterwards, and to an actor that serves hundreds at once, so those spans are recorded in
retrospect, from timestamps, by `Tracing.record`, and no context is carried across awaits.

The sampling decision is made once, at the gateway; everybody behind it reads the flag of the traceparent and does
nothing at all for a request that is not sampled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
    use_span,
)
from opentelemetry.util.types import AttributeValue

from observability.errors import BadSampleRatio
from observability.span_store import REQUEST_ID, SqliteSpanExporter
from observability.traceparent import format_traceparent, parse_traceparent

__all__ = ["REQUEST_ID", "Event", "Tracing", "record_span", "setup_tracing"]

#: An event of a span: (name, unix nanoseconds, attributes).
Event = tuple[str, int, Mapping[str, AttributeValue]]

# Spans of several seconds of full load; when it is full the newest are kept, and the oldest dropped.
_QUEUE_SPANS = 16_384
_DELAY_MS = 500.0
_BATCH_SPANS = 512
_LIMITS = SpanLimits(max_span_attributes=64, max_events=64, max_links=64, max_attribute_length=1024)


def record_span(
    tracer: Tracer,
    name: str,
    *,
    parent_traceparent: str | None,
    start_unix_ns: int,
    end_unix_ns: int,
    attributes: Mapping[str, AttributeValue] | None = None,
    events: Sequence[Event] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    links: Sequence[str] = (),
    error: str = "",
) -> str:
    """Record a span that is already over. Returns its traceparent, or "" where nothing was recorded.

    `parent_traceparent` None begins a trace (the sampler of the process decides); one that is empty, malformed or not
    sampled records nothing, for 2 to 4 µs. `links` are traceparents; those that are not valid are left out. An
    end before the start counts as the start (clocks step). `error`, if not empty, is the description of the status
    ERROR. Never raises for bad contexts.
    """
    context = Context()
    if parent_traceparent is not None:
        parent = parse_traceparent(parent_traceparent)
        if parent is None or not parent.trace_flags.sampled:
            return ""
        context = set_span_in_context(NonRecordingSpan(parent), context)
    span = tracer.start_span(
        name,
        context,
        kind,
        attributes,
        [Link(linked) for linked in map(parse_traceparent, links) if linked is not None],
        start_unix_ns,
    )
    if not span.is_recording():
        return ""
    for event, unix_ns, event_attributes in events:
        span.add_event(event, event_attributes, unix_ns)
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(max(start_unix_ns, end_unix_ns))
    return format_traceparent(span.get_span_context())


class Tracing:
    """The tracer of one process and what ends with it. Made by `setup_tracing`; not a global."""

    def __init__(self, provider: TracerProvider, *, role: str, instance: str) -> None:
        self.role = role
        self.instance = instance
        self.tracer = provider.get_tracer("headgate")
        self._provider = provider

    def start_request(
        self,
        name: str,
        *,
        request_id: str,
        traceparent: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        start_unix_ns: int | None = None,
    ) -> Span:
        """The SERVER span of an HTTP request, continuing the caller's trace where it sent a valid traceparent.

        The caller must `end()` it. What goes on to other actors is `traceparent_of(span)`.
        """
        context = Context()
        parent = parse_traceparent(traceparent)
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(parent), context)
        return self.tracer.start_span(
            name, context, SpanKind.SERVER, {**(attributes or {}), REQUEST_ID: request_id}, start_time=start_unix_ns
        )

    @staticmethod
    def traceparent_of(span: Span) -> str:
        """What to put in the envelope and in the answer's header, sampled or not."""
        return format_traceparent(span.get_span_context())

    @contextmanager
    def current(self, span: Span) -> Iterator[Span]:
        """Make `span` the current one, so that log lines of the block carry its ids. Does not end it."""
        with use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False) as current:
            yield current

    def record(
        self,
        name: str,
        *,
        request_id: str,
        parent_traceparent: str | None,
        start_unix_ns: int,
        end_unix_ns: int,
        attributes: Mapping[str, AttributeValue] | None = None,
        events: Sequence[Event] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[str] = (),
        error: str = "",
    ) -> str:
        """`record_span` for a span of request `request_id`: what `headgate trace` finds it by."""
        return record_span(
            self.tracer,
            name,
            parent_traceparent=parent_traceparent,
            start_unix_ns=start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes={**(attributes or {}), REQUEST_ID: request_id},
            events=events,
            kind=kind,
            links=links,
            error=error,
        )

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Export what is queued; False if the time was not enough. Blocks: call it in a thread when draining."""
        return self._provider.force_flush(int(timeout_s * 1000))

    def shutdown(self) -> None:
        """Flush and close. Blocks as `flush` does. Spans recorded afterwards are dropped. Idempotent."""
        self._provider.shutdown()


def setup_tracing(
    role: str, instance: str, *, data_dir: Path | str | None, sample_ratio: float = 1.0, delay_ms: float = _DELAY_MS
) -> Tracing:
    """Tracing for this process. Call it after any fork: it starts a thread per exporter.

    Spans go to `<data_dir>/spans.db` where there is a data directory, and to the collector named by
    OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) where that is set, `delay_ms` after their end
    at the latest. `sample_ratio` is the share of the traces begun here that are kept; a caller's own decision is
    followed.

    :raises BadSampleRatio: not in [0, 1].
    """
    if not 0.0 <= sample_ratio <= 1.0:
        raise BadSampleRatio(f"sample_ratio is {sample_ratio}: it must be from 0 (none) to 1 (all)")
    resource = Resource.create(
        {"service.name": f"headgate-{role}", "service.instance.id": instance, "process.pid": os.getpid()}
    )
    provider = TracerProvider(ParentBased(TraceIdRatioBased(sample_ratio)), resource, span_limits=_LIMITS)
    exporters: list[SpanExporter] = []
    if data_dir is not None:
        exporters.append(SqliteSpanExporter(Path(data_dir), role=role, instance=instance))
    if any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_")):
        # Only here: it brings requests and protobuf, 5 to 10 MB that an embedded process does not need.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporters.append(OTLPSpanExporter())
    for exporter in exporters:
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_QUEUE_SPANS,
                schedule_delay_millis=delay_ms,
                max_export_batch_size=_BATCH_SPANS,
            )
        )
    return Tracing(provider, role=role, instance=instance)
