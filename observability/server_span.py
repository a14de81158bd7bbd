"""The span of a request at the edge: open while the request is, recorded at its end or, if it turns out to matter,
later."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry.trace import SpanContext, SpanKind
from opentelemetry.util.types import AttributeValue

from observability.recorder import MOST_EVENTS, Event, Recorder
from observability.traceparent import format_traceparent

__all__ = ["ServerSpan"]

_NOTHING: Mapping[str, AttributeValue] = {}


class ServerSpan:
    """Collects facts, whether sampled or not: to set one costs what a dict costs.

    It is recorded by `end` if it is sampled or was kept by then, or by the `keep` that comes after `end`; once.
    """

    __slots__ = (
        "_attributes",
        "_context",
        "_end",
        "_error",
        "_events",
        "_name",
        "_now_ns",
        "_parent",
        "_recorder",
        "_start",
        "is_kept",
        "traceparent",
    )

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        *,
        recorder: Recorder,
        attributes: dict[str, AttributeValue],
        start_unix_ns: int | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.is_kept = context.trace_flags.sampled
        self.traceparent = format_traceparent(context)
        self._name = name
        self._context = context
        self._parent = parent
        self._recorder = recorder
        self._now_ns = now_ns
        self._start = now_ns() if start_unix_ns is None else start_unix_ns
        self._end: int | None = None
        self._attributes = attributes
        self._events: list[Event] = []
        self._error = ""

    def get_span_context(self) -> SpanContext:
        """Its ids, and whether it was sampled at its start."""
        return self._context

    @property
    def can_be_kept(self) -> bool:
        """It was not sampled, and there is somewhere to record it."""
        return self._recorder.exports and not self._context.trace_flags.sampled

    def set_attribute(self, name: str, value: AttributeValue) -> None:
        """Until `end`."""
        self._attributes[name] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Until `end`."""
        self._attributes.update(attributes)

    def add_event(
        self, name: str, attributes: Mapping[str, AttributeValue] = _NOTHING, unix_ns: int | None = None
    ) -> None:
        """Until `end`; those beyond `MOST_EVENTS` are left out."""
        if len(self._events) < MOST_EVENTS:
            self._events.append((name, self._now_ns() if unix_ns is None else unix_ns, attributes))

    def fail(self, description: str) -> None:
        """Its status is ERROR."""
        self._error = description or "error"

    def keep(self) -> None:
        """Record it although it is not sampled: at its end, or at once if that has been."""
        if not self.is_kept:
            self.is_kept = True
            if self._end is not None:
                self._record(self._end)

    def end(self, unix_ns: int | None = None) -> None:
        """It is over. Idempotent."""
        if self._end is None:
            self._end = self._now_ns() if unix_ns is None else unix_ns
            if self.is_kept:
                self._record(self._end)

    def _record(self, end: int) -> None:
        if not self._recorder.exports:
            return
        context = self._context
        if not context.trace_flags.sampled:
            context = self._recorder.sampled(context)
        self._recorder.record(
            self._name,
            context,
            self._parent,
            start_unix_ns=self._start,
            end_unix_ns=end,
            attributes=self._attributes,
            events=self._events,
            kind=SpanKind.SERVER,
            error=self._error,
        )
