"""W3C trace context as the string that rides in every envelope, parsed by hand.

The propagator of the SDK costs 2.5 µs to inject and 4.1 µs to extract; a message between actors needs one slice and one
comparison. https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import re

from opentelemetry.trace import SpanContext, TraceFlags

__all__ = ["format_traceparent", "is_marked", "is_sampled", "log_ids", "parse_traceparent"]

# Versions above 00 may append fields after a dash; 00 itself may not, and ff is forbidden.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z", re.DOTALL)
_LONGEST = 512


def parse_traceparent(text: str | None) -> SpanContext | None:
    """The remote span that `text` names, or None where it is missing or malformed: then a new trace begins. Never
    raises.
    """
    if not text or len(text) > _LONGEST:
        return None
    match = _TRACEPARENT.match(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16) & 1)
    )
    return context if context.is_valid else None


def format_traceparent(context: SpanContext) -> str:
    """The header of `context`; empty for an invalid one."""
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{'01' if context.trace_flags & 1 else '00'}"


def is_sampled(text: str | None) -> bool:
    """Whether spans under `text` are recorded at all: the gateway decided, everyone behind it reads the flag."""
    context = parse_traceparent(text)
    return context is not None and context.trace_flags.sampled


def is_marked(text: str | None) -> bool:
    """`is_sampled` for a context that a gateway of ours wrote, without a look at the rest: 0.1 µs instead of 3."""
    return text is not None and text.endswith("-01")


def log_ids(text: str) -> dict[str, str]:
    """`trace_id` and `span_id` of a context that our gateways wrote, for a log line; nothing for anything else."""
    parts = text.split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}
