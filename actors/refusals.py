"""Verdicts of the pure core as decisions for a client: the reason, the figures, and the words for them."""

from __future__ import annotations

from actors.messages import Decision, Quota
from policies import admission as rules
from policies.admission.reasons import Reason
from policies.limits import Denied
from policies.vocabulary import Tier

__all__ = ["denied", "refused", "unattainable"]

_WORDS = {
    Reason.ttft_unattainable: "the first token would come after {m:.3f} s, the contract allows {t:.3f} s",
    Reason.tpot_unattainable: "tokens would come every {m:.4f} s, the tightest contract allows {t:.4f} s",
    Reason.kv_exhausted: "the KV cache would peak at {m:.0f} blocks, {t:.0f} may be used",
    Reason.deadline_exceeded: "it waited {m:.2f} s of {t:.2f} s and can no longer start in time",
    Reason.queue_full: "the queue is full: {m:.0f} wait already, {t:.0f} may",
    Reason.overloaded: "contracts press for {m:.0%} of the capacity: from {t:.0%} on nothing else is let in",
    Reason.no_worker: "no worker serves this model now",
    Reason.requests_per_minute: "the limit of {t:.0f} requests a minute is used up",
    Reason.tokens_per_minute: "the limit of {t:.0f} tokens a minute does not allow it: {m:.0f} would be used",
    Reason.concurrency: "{m:.0f} requests of this tenant are under way, at most {t:.0f} may be",
    Reason.daily_budget: "the budget of {t:.0f} tokens a day does not allow it: {m:.0f} would be used",
}
_WITHOUT_CONTRACT = "it would have to wait {m:.2f} s to start, it may wait {t:.2f} s"


def refused(
    reason: Reason,
    *,
    quota: Quota | None,
    why: str = "",
    measured: float = 0.0,
    threshold: float = 0.0,
    retry_after_s: float | None = None,
    predicted_ttft_s: float | None = None,
) -> Decision:
    """A refusal. `why` replaces the words that the reason has by itself."""
    words = why or _WORDS.get(reason, "{m:g} against {t:g}").format(m=measured, t=threshold)
    return Decision(
        outcome="refused",
        reason=reason.value,
        message=words,
        measured=measured,
        threshold=threshold,
        retry_after_s=retry_after_s,
        predicted_ttft_s=predicted_ttft_s,
        quota=quota,
    )


def denied(limit: Denied, *, quota: Quota | None) -> Decision:
    """A limit of the tenant does not allow it."""
    return refused(
        limit.reason, quota=quota, measured=limit.measured, threshold=limit.limit, retry_after_s=limit.retry_after_s
    )


def unattainable(verdict: rules.Refuse, candidate: rules.Candidate, *, quota: Quota | None) -> Decision:
    """Its contract, or its patience where it has none, cannot be kept."""
    why = ""
    if verdict.reason is Reason.ttft_unattainable and not _is_promised(candidate):
        why = _WITHOUT_CONTRACT.format(m=verdict.measured, t=verdict.threshold)
    return refused(
        verdict.reason,
        quota=quota,
        why=why,
        measured=verdict.measured,
        threshold=verdict.threshold,
        retry_after_s=verdict.retry_after_s,
        predicted_ttft_s=verdict.predicted_ttft_s,
    )


def _is_promised(candidate: rules.Candidate) -> bool:
    return candidate.ttft_s is not None and candidate.committed and candidate.tier != Tier.flex
