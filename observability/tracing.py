"""Tracing of one process: where its spans go, and how the actors make them.

A request is about seven spans, made once each; there are none per token. What a request lives through (queue, prefill,
decode) is known only afterwards, and to an actor that serves hundreds at once, so spans are recorded in retrospect,
from timestamps, by `Tracing.record`, and no context is carried across awaits.

Whether a trace is sampled is decided once, at the gateway; everybody behind it reads the flag of the traceparent.
Requests that turn out to matter are recorded although they are not sampled: see `Tracing.held`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Tracer, use_span
from opentelemetry.util.types import AttributeValue

from observability.errors import BadSampleRatio
from observability.held import HeldSpans
from observability.recorder import MOST_EVENTS, MOST_LINKS, Event, Recorder
from observability.server_span import ServerSpan
from observability.span_exporter import SqliteSpanExporter
from observability.span_store import REQUEST_ID
from observability.traceparent import format_traceparent, is_marked, parse_traceparent

__all__ = ["MOST_EVENTS", "MOST_LINKS", "REQUEST_ID", "Event", "Tracing", "setup_tracing"]

# Spans of several seconds of full load; when it is full the newest are kept, and the oldest dropped.
_QUEUE_SPANS = 16_384
_DELAY_MS = 500.0
_BATCH_SPANS = 512
#: One step in so many has a span, at most: with rows by the dozen and steps by the hundred a second, more would be the
#: larger part of all spans.
_STEPS_EVERY = 100


class Tracing:
    """The spans of one process. Made by `setup_tracing`; not a global.

    `held` keeps what this process could tell of requests that are not sampled. Actors of one process may share it.
    """

    def __init__(
        self,
        provider: TracerProvider,
        recorder: Recorder,
        *,
        role: str,
        instance: str,
        sample_ratio: float = 1.0,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.role = role
        self.instance = instance
        self.tracer: Tracer = provider.get_tracer("headgate")
        self.now_ns = now_ns
        self.held = HeldSpans()
        #: One step in so many gets a span; 0: none does.
        self.steps_every = max(_STEPS_EVERY, round(1 / sample_ratio)) if sample_ratio > 0 and recorder.exports else 0
        self._provider = provider
        self._recorder = recorder

    @property
    def exports(self) -> bool:
        """Whether spans go anywhere. If not, nothing needs to be held either."""
        return self._recorder.exports

    def start_request(
        self,
        name: str,
        *,
        request_id: str,
        traceparent: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        start_unix_ns: int | None = None,
    ) -> ServerSpan:
        """The SERVER span of an HTTP request, continuing the caller's trace where it sent a valid traceparent.

        The caller must `end()` it. What goes on to other actors is its `traceparent`.
        """
        parent = parse_traceparent(traceparent)
        return ServerSpan(
            name,
            self._recorder.new_context(parent),
            parent,
            recorder=self._recorder,
            attributes={**(attributes or {}), REQUEST_ID: request_id},
            start_unix_ns=start_unix_ns,
            now_ns=self.now_ns,
        )

    @staticmethod
    def traceparent_of(span: ServerSpan | Span) -> str:
        """What to put in the envelope and in the answer's header, sampled or not."""
        return format_traceparent(span.get_span_context())

    @contextmanager
    def current(self, span: ServerSpan | Span) -> Iterator[Span]:
        """Make `span` the current one, so that log lines of the block carry its ids. Does not end it."""
        inside = NonRecordingSpan(span.get_span_context())
        with use_span(inside, end_on_exit=False, record_exception=False, set_status_on_exception=False) as current:
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
        keep: bool = False,
    ) -> str:
        """Record a span that is already over, of request `request_id` (empty: of none), by which `headgate trace` finds
        it. Returns its traceparent, or "" where nothing was recorded.

        `parent_traceparent` None begins a trace; one that is empty or malformed records nothing. A trace that is not
        sampled is recorded with `keep` alone. `links` are traceparents; those that are not valid are left out. An end
        before the start counts as the start (clocks step). `error`, if not empty, is the description of the status
        ERROR. Never raises for bad contexts.
        """
        parent: SpanContext | None = None
        if parent_traceparent is not None:
            if not (keep or is_marked(parent_traceparent)):
                return ""
            parent = parse_traceparent(parent_traceparent)
            if parent is None:
                return ""
        context = self._recorder.new_context(parent, sampled=True if keep else None)
        if not context.trace_flags.sampled:
            return ""
        if self._recorder.exports:
            given = dict(attributes) if attributes else {}
            if request_id:
                given[REQUEST_ID] = request_id
            self._recorder.record(
                name,
                context,
                parent,
                start_unix_ns=start_unix_ns,
                end_unix_ns=end_unix_ns,
                attributes=given,
                events=events,
                kind=kind,
                links=links,
                error=error,
            )
        return format_traceparent(context)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Export what is queued; False if the time was not enough. Blocks: call it in a thread when draining."""
        return self._provider.force_flush(int(timeout_s * 1000))

    def shutdown(self) -> None:
        """Flush and close. Blocks as `flush` does. Spans recorded afterwards are dropped. Idempotent."""
        self._provider.shutdown()


def setup_tracing(
    role: str,
    instance: str,
    *,
    data_dir: Path | str | None,
    sample_ratio: float = 1.0,
    delay_ms: float = _DELAY_MS,
    exporters: Sequence[SpanExporter] = (),
    now_ns: Callable[[], int] = time.time_ns,
) -> Tracing:
    """Tracing for this process. Call it after any fork: it starts a thread per exporter.

    Spans go to `<data_dir>/spans.db` where there is a data directory, to the collector named by
    OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) where that is set, and to `exporters`,
    `delay_ms` after their end at the latest; with OTEL_SDK_DISABLED=true nowhere. `sample_ratio` is the share of the
    traces begun here that are sampled; a caller's own decision is followed. `now_ns` is the wall clock.

    :raises BadSampleRatio: not in [0, 1].
    """
    if not 0.0 <= sample_ratio <= 1.0:
        raise BadSampleRatio(f"sample_ratio is {sample_ratio}: it must be from 0 (none) to 1 (all)")
    resource = Resource.create(
        {"service.name": f"headgate-{role}", "service.instance.id": instance, "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=resource)
    processors: list[BatchSpanProcessor] = []
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true":
        for exporter in _exporters(role, instance, data_dir, exporters):
            processors.append(
                BatchSpanProcessor(
                    exporter,
                    max_queue_size=_QUEUE_SPANS,
                    schedule_delay_millis=delay_ms,
                    max_export_batch_size=_BATCH_SPANS,
                )
            )
            provider.add_span_processor(processors[-1])
    recorder = Recorder(resource, processors, ratio=sample_ratio)
    return Tracing(provider, recorder, role=role, instance=instance, sample_ratio=sample_ratio, now_ns=now_ns)


def _exporters(
    role: str, instance: str, data_dir: Path | str | None, given: Sequence[SpanExporter]
) -> Iterator[SpanExporter]:
    yield from given
    if data_dir is not None:
        yield SqliteSpanExporter(Path(data_dir), role=role, instance=instance)
    if any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_")):
        # Only here: it brings requests and protobuf, 5 to 10 MB that an embedded process does not need.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        yield OTLPSpanExporter()
