"""One step in many as a span of its own: what was in the batch, and how long it was predicted to take and took.

A step serves many requests, so it belongs to the trace of none: it begins a trace, and links to the sampled requests in
it as they link to it.
"""

from __future__ import annotations

from actors.request_spans import RequestSpans
from actors.step_notes import StepNote
from observability.traceparent import is_marked
from observability.tracing import Tracing

__all__ = ["StepSpans"]

#: Requests that a step links to.
_MOST_LINKS = 32


class StepSpans:
    """A `StepObserver`. A step that is not sampled costs it one division."""

    def __init__(self, tracing: Tracing, requests: RequestSpans, *, model: str) -> None:
        self._tracing = tracing
        self._requests = requests
        self._model = model
        self._every = tracing.steps_every

    def stepped(self, note: StepNote) -> None:
        """See `StepObserver`."""
        if self._every and note.number % self._every == 0:
            self._record(note)

    def _record(self, note: StepNote) -> None:
        ended = self._tracing.now_ns()
        rows = list(note.requests())
        step = self._tracing.record(
            "step",
            request_id="",
            parent_traceparent=None,
            start_unix_ns=ended - int(note.actual_s * 1e9),
            end_unix_ns=ended,
            attributes={
                "headgate.model": self._model,
                "headgate.worker": note.worker,
                "headgate.epoch": note.epoch,
                "headgate.step": note.number,
                "headgate.rows": note.rows,
                "headgate.prefill_tokens": note.prefill_tokens,
                "headgate.decode_tokens": note.decode_tokens,
                "headgate.predicted_ms": round(note.predicted_s * 1000, 3),
                "headgate.actual_ms": round(note.actual_s * 1000, 3),
            },
            links=[row.traceparent for row in rows if is_marked(row.traceparent)][:_MOST_LINKS],
            keep=True,
        )
        for row in rows:
            self._requests.ran_in(row.id, note.at, step)
