"""Refuse while too many prompt tokens wait: the gate of vLLM (`max_num_queued_tokens`), with no idea of deadlines.

What waits is what is not computed yet of the prompts on a worker. The gate looks before it lets in, so one request may
exceed the budget.
"""

from __future__ import annotations

from policies.admission.glance import Glance, admit_as_it_is
from policies.admission.reasons import Reason
from policies.admission.situation import Situation
from policies.admission.verdict import Candidate, Refuse, Verdict

__all__ = ["token_budget"]


def token_budget(candidate: Candidate, situation: Situation) -> Verdict:
    """To the worker with the shortest queue."""
    glances = [Glance(load, situation.reserved_on(load.worker)) for load in situation.loads]
    best = min(glances, key=lambda glance: glance.queued_tokens)
    budget = situation.policy.queued_tokens
    if best.queued_tokens > budget:
        return Refuse(
            reason=Reason.queue_full,
            measured=best.queued_tokens,
            threshold=budget,
            retry_after_s=situation.retry_s(best.prompt_s(best.queued_tokens - budget)),
        )
    return admit_as_it_is(
        candidate,
        situation,
        best.load.worker,
        first_token_s=best.prompt_s(best.queued_tokens) + best.prompt_s(candidate.prompt_tokens),
        step_s=best.step_s(best.rows + 1, best.context + candidate.prompt_tokens),
    )
