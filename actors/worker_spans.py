"""The `chat {model}` span of a row: what a worker did for one attempt of a request, from the step that gave it a slot
to its last token, or to the step that took its slot away."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from actors.messages import Keep
from actors.runtime import Context
from observability.traceparent import is_marked
from observability.tracing import Tracing
from policies.vocabulary import Finish, NewRow

__all__ = ["RowTrace", "WorkerSpans"]


class RowTrace:
    """A row in a slot. `outputs` is counted by the worker."""

    __slots__ = ("outputs", "row", "since_unix_ns")

    def __init__(self, row: NewRow, since_unix_ns: int) -> None:
        self.row = row
        self.since_unix_ns = since_unix_ns
        self.outputs = 0


class _Left(NamedTuple):
    request: str
    attempt: int
    traceparent: str
    prompt_tokens: int
    computed: int
    outputs: int
    since_unix_ns: int
    until_unix_ns: int
    finish: str  # empty: its slot was taken away


class WorkerSpans:
    """Told of rows that leave their slots."""

    def __init__(self, tracing: Tracing, *, model: str) -> None:
        self._tracing = tracing
        self._model = model

    def left(self, trace: RowTrace, finish: Finish, *, worker: str) -> None:
        """It is over, or with `Finish.none` only its slot was taken: it was preempted, or is not wanted any more."""
        if not self._tracing.exports:
            return
        row = trace.row
        facts = _Left(
            row.request,
            row.attempt,
            row.traceparent,
            row.prompt_tokens,
            row.computed,
            trace.outputs,
            trace.since_unix_ns,
            self._tracing.now_ns(),
            finish.name if finish != Finish.none else "",
        )
        record = partial(self._record, facts, worker)
        if is_marked(row.traceparent):
            record()
        else:
            self._tracing.held.hold(row.request, record)

    def asked(self, msg: Keep, ctx: Context) -> None:
        """A gateway wants what is known of them."""
        self._tracing.held.keep(msg.requests)

    def _record(self, facts: _Left, worker: str) -> None:
        self._tracing.record(
            f"chat {self._model}",
            request_id=facts.request,
            parent_traceparent=facts.traceparent,
            start_unix_ns=facts.since_unix_ns,
            end_unix_ns=facts.until_unix_ns,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "headgate",
                "gen_ai.request.model": self._model,
                "gen_ai.usage.input_tokens": facts.prompt_tokens,
                "gen_ai.usage.output_tokens": facts.outputs,
                **({"gen_ai.response.finish_reasons": (facts.finish,)} if facts.finish else {}),
                "headgate.attempt": facts.attempt,
                "headgate.worker": worker,
                "headgate.kept_tokens": facts.computed,
            },
            events=() if facts.finish else [("slot_taken", facts.until_unix_ns, {})],
            keep=True,
        )
