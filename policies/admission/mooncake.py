"""Early rejection (Mooncake, FAST'25, section 7): refuse at arrival what would miss its objectives, before its prefill.

Time to first token: the queue of prompts, first come first served, then its own prompt. Time between tokens: that of
the decode batch. The naive kind takes the batch of now, which makes load oscillate: what is admitted now decodes only
later. The other takes the batch predicted for the end of the prefill, where every request decodes for a uniform time:
who has had it by then is gone, and the prompts ahead have joined. Both know neither classes nor contracts: a request
without a figure is not tested on it.
"""

from __future__ import annotations

from collections.abc import Callable

from policies.admission.glance import Glance, admit_as_it_is
from policies.admission.reasons import Reason
from policies.admission.situation import Situation
from policies.admission.verdict import Candidate, Refuse, Verdict

__all__ = ["mooncake", "mooncake_naive"]

#: The batch that the candidate decodes in: the time of a step, given when its prefill ends.
_Decode = Callable[[Glance, float], float]


def mooncake_naive(candidate: Candidate, situation: Situation) -> Verdict:
    """By the decode load of now."""
    return _reject_early(candidate, situation, lambda glance, end_s: glance.step_s(glance.rows, glance.context))


def mooncake(candidate: Candidate, situation: Situation) -> Verdict:
    """By the decode load predicted for the end of its prefill."""
    outputs = situation.policy.uniform_outputs or situation.outputs(candidate, 0.5)

    def predicted(glance: Glance, end_s: float) -> float:
        return _step_at(glance, situation, candidate, end_s, outputs)

    return _reject_early(candidate, situation, predicted)


def _reject_early(candidate: Candidate, situation: Situation, decode: _Decode) -> Verdict:
    """On the worker with the earliest first token, of those whose steps are fast enough."""
    waited = situation.now - candidate.arrived_s
    options = []
    for load in situation.loads:
        glance = Glance(load, situation.reserved_on(load.worker))
        own = candidate.prompt_tokens - min(candidate.cached.get(load.worker, 0), candidate.prompt_tokens - 1)
        first_token = glance.prompt_s(glance.queued_tokens) + glance.prompt_s(own)
        step = decode(glance, first_token)
        slow = candidate.tpot_s is not None and step > candidate.tpot_s
        options.append((slow, first_token, load.worker, step, glance))
    slow, first_token, worker, step, glance = min(options, key=lambda option: option[:3])
    predicted = waited + first_token
    if candidate.ttft_s is not None and predicted > candidate.ttft_s:
        return Refuse(
            reason=Reason.ttft_unattainable,
            measured=predicted,
            threshold=candidate.ttft_s,
            retry_after_s=situation.retry_s(predicted - candidate.ttft_s),
            predicted_ttft_s=predicted,
        )
    if candidate.tpot_s is not None and slow:
        ends = [r.outputs_left for r in glance.load.requests if r.prefill_left <= 1]
        return Refuse(
            reason=Reason.tpot_unattainable,
            measured=step,
            threshold=candidate.tpot_s,
            retry_after_s=situation.retry_s(min(ends, default=1) * step),
            predicted_ttft_s=predicted,
        )
    return admit_as_it_is(candidate, situation, worker, first_token_s=first_token, step_s=step)


def _step_at(glance: Glance, situation: Situation, candidate: Candidate, end_s: float, outputs: int) -> float:
    """The time of a step when the candidate's prefill ends, in `end_s`, if everybody decodes for `outputs` steps."""
    step = glance.step_s(max(1, glance.rows), glance.context)
    steps = end_s / step
    rows, context, ahead = 1, float(candidate.prompt_tokens), 0
    prompts = [(r.prefill_left, r.context) for r in glance.load.requests if r.prefill_left > 1]
    prompts += [(r.prompt_tokens, 0) for r in situation.reserved_on(glance.load.worker)]
    for left, done in prompts:
        ahead += left
        decoded = max(0.0, end_s - glance.prompt_s(ahead)) / step
        if decoded < outputs:
            rows += 1
            context += left + done + decoded
    for r in glance.load.requests:
        if r.prefill_left <= 1 and r.generated + steps < outputs:
            rows += 1
            context += r.context + steps
    return glance.step_s(rows, context)
