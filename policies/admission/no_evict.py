"""Admit only what cannot run out of memory: the worst case of everybody fits (Orca, OSDI'22; TensorRT-LLM's
GUARANTEED_NO_EVICT).

The sum of prompt and `max_tokens` over all that was admitted to a worker stays within its KV pool, so nothing is ever
preempted for memory. Who does not fit yet waits in order, up to the latest start that makes its deadline. Safe, and
wasteful: outputs are a fraction of `max_tokens`.
"""

from __future__ import annotations

from policies.admission.glance import Glance, admit_as_it_is, allowed_s
from policies.admission.reasons import Reason
from policies.admission.situation import Situation
from policies.admission.verdict import Candidate, Defer, Refuse, Verdict
from policies.vocabulary import BLOCK_SIZE, WorkerLoad

__all__ = ["no_evict"]


def no_evict(candidate: Candidate, situation: Situation) -> Verdict:
    """To the worker that keeps the most blocks free in the worst case."""
    tokens = candidate.prompt_tokens + candidate.max_tokens
    blocks = -(-tokens // BLOCK_SIZE)
    able = [load for load in situation.loads if blocks <= load.blocks and tokens <= load.max_context]
    if not able:
        most = max(min(load.blocks * BLOCK_SIZE, load.max_context) for load in situation.loads)
        return Refuse(reason=Reason.kv_exhausted, measured=tokens, threshold=most, retry_after_s=None)
    glances = [Glance(load, situation.reserved_on(load.worker)) for load in able]
    best = max(glances, key=lambda glance: glance.load.blocks - glance.worst_blocks)
    needed = best.worst_blocks + blocks
    first_token = best.prompt_s(best.queued_tokens) + best.prompt_s(candidate.prompt_tokens)
    step = best.step_s(best.rows + 1, best.context + candidate.prompt_tokens)
    if needed <= best.load.blocks:
        return admit_as_it_is(candidate, situation, best.load.worker, first_token_s=first_token, step_s=step)
    now, waited = situation.now, situation.now - candidate.arrived_s
    freed = _next_end_s(best.load, step)
    own = 0.0 if candidate.ttft_s is None else best.prompt_s(candidate.prompt_tokens)
    deadline = candidate.arrived_s + allowed_s(candidate) - own
    if deadline < now:
        return Refuse(
            reason=Reason.kv_exhausted,
            measured=needed * BLOCK_SIZE,
            threshold=best.load.blocks * BLOCK_SIZE,
            retry_after_s=situation.retry_s(freed),
        )
    return Defer(
        worker=best.load.worker,
        until_s=min(now + freed, deadline),
        deadline_s=deadline,
        predicted_ttft_s=waited + freed + first_token,
        predicted_tpot_s=step,
        reason=Reason.kv_exhausted,
        tier=candidate.tier,
    )


def _next_end_s(load: WorkerLoad, step_s: float) -> float:
    """When the first running request is over at the latest."""
    return min((r.outputs_left for r in load.requests if r.prefill_left <= 1), default=1) * step_s
