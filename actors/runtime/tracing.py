"""Trace context across messages.

The envelope carries a W3C `traceparent` string. It is written and read by hand: the propagator API costs four times as
much and goes through a dictionary. Only message types with `trace = True` take part, so steps and tokens pay nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace

__all__ = ("consumer_span", "extract", "inject", "is_sampled")

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def inject() -> str:
    """The traceparent of the current span, "" if there is none."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return ""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"


def extract(traceparent: str) -> trace.SpanContext | None:
    """The remote span that a traceparent names, None if it is empty or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or match[1] == "ff" or (match[1] == "00" and len(traceparent) != 55):
        return None
    remote = trace.SpanContext(
        trace_id=int(match[2], 16),
        span_id=int(match[3], 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(match[4], 16)),
    )
    return remote if remote.is_valid else None


def is_sampled(traceparent: str) -> bool:
    """Whether the sender records this trace."""
    remote = extract(traceparent)
    return remote is not None and remote.trace_flags.sampled


@contextmanager
def consumer_span(tracer: trace.Tracer | None, name: str, traceparent: str, destination: str) -> Iterator[None]:
    """Continue the sender's trace: in a span of our own if it is sampled, else only as the current context."""
    remote = extract(traceparent)
    if remote is None:
        yield
        return
    parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    if tracer is not None and remote.trace_flags.sampled:
        attributes = {"messaging.system": "nats", "messaging.destination.name": destination}
        with tracer.start_as_current_span(name, context=parent, kind=trace.SpanKind.CONSUMER, attributes=attributes):
            yield
        return
    token = context.attach(parent)
    try:
        yield
    finally:
        context.detach(token)
