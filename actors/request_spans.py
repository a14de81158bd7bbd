"""The spans of a request that its scheduler can tell, `queue`, `prefill` and `decode`: collected while it lives, made
when it leaves.

The scheduler's times are of its monotonic clock; they become wall-clock instants by the offset between both clocks at
the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from opentelemetry.util.types import AttributeValue

from actors.messages import Keep
from actors.request_life import Life
from actors.runtime import Context
from actors.step_notes import StepNote
from observability.traceparent import is_marked
from observability.tracing import Tracing
from policies.events import Event as SchedulerEvent
from policies.events import Finished, FirstToken, Preempted, Scheduled
from policies.vocabulary import Finish, Request, Tier

__all__ = ["RequestSpans"]


class RequestSpans:
    """Told of every request of a scheduler; a `StepObserver`, for the chunks."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._lives: dict[str, Life] = {}
        self._out = 0  # preempted, and not back yet

    # --- what happens -------------------------------------------------------------------------------------------------

    def taken(self, request: Request, now: float) -> None:
        """It is here, and waits."""
        if not self._tracing.exports:
            return
        older = self._lives.get(request.id)
        if older is not None:
            self._end(older, now, "superseded", None)
        self._lives[request.id] = Life(request, now)

    def placed(self, request_id: str, worker: str) -> None:
        """This worker is to serve it."""
        life = self._lives.get(request_id)
        if life is not None:
            life.worker = worker

    def stepped(self, note: StepNote) -> None:
        """See `StepObserver`."""
        if note.prefill_tokens:
            lives = self._lives
            for request, tokens in note.chunks():
                life = lives.get(request.id)
                if life is not None:
                    life.chunk(note.at, note.number, tokens, note.actual_s)
        if self._out:
            self._back(note)

    def _back(self, note: StepNote) -> None:
        for row in note.entered():
            life = self._lives.get(row.request)
            if life is not None and life.is_out:
                self._out -= 1
                life.is_out = False
                resumed = {"headgate.step": note.number, "headgate.kept_tokens": row.computed}
                life.incident(note.at - note.actual_s, "resumed", resumed)

    def ran_in(self, request_id: str, at: float, step: str) -> None:
        """A sampled step, by its traceparent, had it as a row."""
        life = self._lives.get(request_id)
        if life is not None:
            life.steps.append((at, step))

    def heard(self, events: Iterable[SchedulerEvent]) -> list[Life]:
        """Take what the core reports. Returns those whose first preemption this was, and whose trace is not sampled:
        their gateways are to be told."""
        found: list[Life] = []
        for event in events:
            life = self._lives.get(event.request)
            if life is None or life.attempt != event.attempt:
                continue
            if isinstance(event, Finished):
                self._finished(life, event)
            elif isinstance(event, Scheduled):
                life.scheduled_at, life.cached_tokens = event.at, event.cached_tokens
            elif isinstance(event, FirstToken):
                life.first_token_at = event.at
            else:
                if isinstance(event, Preempted):
                    if not life.preemptions and not is_marked(life.traceparent):
                        found.append(life)
                    self._preempted(life, event)
                else:
                    life.incident(
                        event.at,
                        "reclaimed",
                        {"headgate.lost_tokens": event.lost_tokens, "headgate.blocks": event.blocks},
                    )
                if event.swapped_blocks:
                    life.incident(event.at, "swapped", {"headgate.blocks": event.swapped_blocks})
        return found

    def _preempted(self, life: Life, event: Preempted) -> None:
        life.preemptions += 1
        life.is_kept = True
        if not life.is_out:
            life.is_out = True
            self._out += 1
        facts: dict[str, AttributeValue] = {
            "headgate.kind": event.kind,
            "headgate.lost_tokens": event.lost_tokens,
            "headgate.blocks": event.blocks,
            "headgate.kept_blocks": event.kept_blocks,
        }
        life.incident(event.at, "preempted", facts)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _finished(self, life: Life, event: Finished) -> None:
        finish, error = event.finish.name, ""
        if event.finish is Finish.error and event.first_scheduled_at is None:
            finish, error = "shed", "its first-token deadline passed, or would, before a worker could serve it"
        elif event.finish is Finish.cancelled:
            life.incident(event.at, "cancelled", {})
        self._end(life, event.at, finish, event.generated, error)

    def handed_back(self, request_id: str, now: float, why: str) -> None:
        """Its worker is gone, and its gateway will submit it again."""
        life = self._lives.get(request_id)
        if life is not None:
            life.incident(now, "handed_back", {"headgate.why": why})
            self._end(life, now, "handed_back", None, why)

    def keep_open(self, request_ids: Iterable[str]) -> None:
        """Those matter, whoever asks for them or does not."""
        for request_id in request_ids:
            life = self._lives.get(request_id)
            if life is not None:
                life.is_kept = True

    def asked(self, msg: Keep, ctx: Context) -> None:
        """A gateway wants what is known of them."""
        self._tracing.held.keep(msg.requests)

    def forget(self, request_id: str) -> None:
        """It left without a word."""
        life = self._lives.pop(request_id, None)
        if life is not None and life.is_out:
            self._out -= 1

    def _end(self, life: Life, now: float, finish: str, generated: int | None, error: str = "") -> None:
        self.forget(life.id)
        offset_ns = self._tracing.now_ns() - int(now * 1e9)
        record = partial(_record, self._tracing, life, now, finish, generated, error, offset_ns)
        if is_marked(life.traceparent):
            record(keep=False)
        elif life.is_kept or error:
            record()
        else:
            self._tracing.held.hold(life.id, record)


def _record(
    tracing: Tracing,
    life: Life,
    now: float,
    finish: str,
    generated: int | None,
    error: str,
    offset_ns: int,
    *,
    keep: bool = True,
) -> None:
    """Phases that it did not reach are absent. What happened is told by the phase in which it happened."""
    phases = [("queue", life.taken_at)]
    if life.scheduled_at is not None:
        phases.append(("prefill", life.scheduled_at))
        if life.first_token_at is not None:
            phases.append(("decode", life.first_token_at))
    happened = _events(life)
    common: dict[str, AttributeValue] = {
        "headgate.tenant": life.tenant,
        "headgate.tier": Tier(life.tier).name,
        "headgate.attempt": life.attempt,
        "headgate.worker": life.worker,
    }
    for at, (name, start) in enumerate(phases):
        is_last = at == len(phases) - 1
        end = now if is_last else phases[at + 1][1]
        # The step that ends a phase comes back at the very instant at which the next one begins.
        first, last = start if at else float("-inf"), float("inf") if is_last else end
        tracing.record(
            name,
            request_id=life.id,
            parent_traceparent=life.traceparent,
            start_unix_ns=int(start * 1e9) + offset_ns,
            end_unix_ns=int(end * 1e9) + offset_ns,
            attributes=common | _figures(name, life, generated) | ({"headgate.finish": finish} if is_last else {}),
            events=[
                (event, int(when * 1e9) + offset_ns, facts) for when, event, facts in happened if first < when <= last
            ],
            links=[step for when, step in life.steps if first < when <= last],
            error=error if is_last else "",
            keep=keep,
        )


def _figures(phase: str, life: Life, generated: int | None) -> dict[str, AttributeValue]:
    if phase == "prefill":
        return {
            "headgate.prompt_tokens": life.prompt_tokens,
            "headgate.cached_tokens": life.cached_tokens,
            "headgate.chunks": life.chunks,
        }
    if phase == "decode":
        outputs: dict[str, AttributeValue] = {} if generated is None else {"headgate.output_tokens": generated}
        return outputs | {"headgate.preemptions": life.preemptions}
    return {}


def _events(life: Life) -> list[tuple[float, str, Mapping[str, AttributeValue]]]:
    chunks = [
        (at, "chunk", {"headgate.tokens": tokens, "headgate.step": step, "headgate.step_ms": round(seconds * 1000, 3)})
        for at, step, tokens, seconds in life.told_chunks
    ]
    found = [*chunks, *life.incidents]
    if life.first_token_at is not None:
        found.append((life.first_token_at, "first_token", {}))
    return sorted(found, key=lambda event: event[0])
