"""What observability refuses. Only at start: nothing in here ever raises into a request."""

from __future__ import annotations

__all__ = ["BadLogLevel", "BadSampleRatio", "JaegerUnreadable", "ObservabilityError", "SpanStoreUnreadable"]


class ObservabilityError(Exception):
    """Base of the errors of this package."""


class BadLogLevel(ObservabilityError, ValueError):
    """HEADGATE_LOG is not a level."""


class BadSampleRatio(ObservabilityError, ValueError):
    """The share of traces to keep is not in [0, 1]."""


class SpanStoreUnreadable(ObservabilityError):
    """spans.db is there, but is no span store."""


class JaegerUnreadable(ObservabilityError):
    """A Jaeger does not answer, or not as one."""
