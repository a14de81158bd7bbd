"""The `admission` span of a request: how it was decided, with the figures that decided it."""

from __future__ import annotations

from typing import NamedTuple

from opentelemetry.util.types import AttributeValue

from actors.messages import Decision, Keep
from actors.runtime import Context
from observability.held import HeldSpans
from observability.traceparent import is_marked
from observability.tracing import Event, Tracing
from policies import admission as rules
from policies.admission.reasons import Reason
from policies.vocabulary import Request, Tier

__all__ = ["AdmissionSpans"]

#: A request is decided long before its gateway sees how it ends, so more of them are held than elsewhere.
_HELD = 16_384


class _Decided(NamedTuple):
    request: str
    traceparent: str
    tenant: str
    tier: int
    prompt_tokens: int
    max_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    decision: Decision
    deferral: tuple[int, rules.Defer] | None
    since_unix_ns: int
    until_unix_ns: int


class AdmissionSpans:
    """Told of every decision. Refusals are recorded whether their trace is sampled or not."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._held = HeldSpans(_HELD)
        self._deferrals: dict[str, tuple[int, rules.Defer]] = {}

    def deferred(self, request: Request, verdict: rules.Defer) -> None:
        """It waits here; `decided` follows."""
        self._deferrals[request.id] = self._tracing.now_ns(), verdict

    def decided(self, request: Request, decision: Decision, *, since_unix_ns: int) -> None:
        """The final word on a request that came at `since_unix_ns`."""
        deferral = self._deferrals.pop(request.id, None)
        if not self._tracing.exports:
            return
        facts = _Decided(
            request.id,
            request.traceparent,
            request.tenant,
            request.tier,
            len(request.prompt) // 4,
            request.max_tokens,
            request.ttft_s,
            request.tpot_s,
            decision,
            deferral,
            since_unix_ns,
            self._tracing.now_ns(),
        )
        is_refused = decision.outcome != "admitted" and decision.reason != Reason.cancelled
        if is_refused or is_marked(request.traceparent):
            self._record(facts)
        else:
            self._held.hold(request.id, lambda: self._record(facts))

    def asked(self, msg: Keep, ctx: Context) -> None:
        """A gateway wants what is known of them."""
        self._held.keep(msg.requests)

    def _record(self, facts: _Decided) -> None:
        refused = facts.decision.outcome != "admitted"
        self._tracing.record(
            "admission",
            request_id=facts.request,
            parent_traceparent=facts.traceparent,
            start_unix_ns=facts.since_unix_ns,
            end_unix_ns=facts.until_unix_ns,
            attributes=_attributes(facts),
            events=_events(facts),
            error=facts.decision.message or facts.decision.reason if refused else "",
            keep=True,
        )


def _attributes(facts: _Decided) -> dict[str, AttributeValue]:
    decision, quota = facts.decision, facts.decision.quota
    outcome = "deferred" if decision.outcome == "admitted" and facts.deferral else decision.outcome
    found: dict[str, AttributeValue] = {
        "headgate.tenant": facts.tenant,
        "headgate.tier": Tier(facts.tier).name,
        "headgate.prompt_tokens": facts.prompt_tokens,
        "headgate.max_tokens": facts.max_tokens,
        "headgate.decision": outcome,
    }
    times = {
        "headgate.deadline_ms": facts.ttft_s,
        "headgate.deadline_tpot_ms": facts.tpot_s,
        "headgate.predicted_ttft_ms": decision.predicted_ttft_s,
        "headgate.predicted_tpot_ms": decision.predicted_tpot_s,
        "headgate.retry_after_ms": decision.retry_after_s,
        "headgate.deferred_ms": (facts.until_unix_ns - facts.deferral[0]) / 1e9 if facts.deferral else None,
    }
    found.update({name: round(1000 * value, 3) for name, value in times.items() if value is not None})
    if decision.reason:
        found["headgate.reason"] = decision.reason
    if decision.outcome != "admitted":
        found |= {"headgate.measured": decision.measured, "headgate.threshold": decision.threshold}
    if quota is not None:
        limits = {
            "headgate.requests_limit": quota.requests_limit,
            "headgate.requests_left": quota.requests_left,
            "headgate.tokens_limit": quota.tokens_limit,
            "headgate.tokens_left": quota.tokens_left,
        }
        found.update({name: value for name, value in limits.items() if value is not None})
    return found


def _events(facts: _Decided) -> list[Event]:
    if facts.deferral is None:
        return []
    at, verdict = facts.deferral
    figures: dict[str, AttributeValue] = {
        "headgate.reason": verdict.reason.value,
        "headgate.worker": verdict.worker,
        "headgate.predicted_ttft_ms": round(1000 * verdict.predicted_ttft_s, 3),
        "headgate.predicted_tpot_ms": round(1000 * verdict.predicted_tpot_s, 3),
    }
    return [("deferred", at, figures)]
