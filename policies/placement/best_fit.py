"""Where the first token comes soonest, and among equals where its prefix may be.

This is for a request that has no worker yet. Admission, which has tested every worker against contracts, chooses the
best fit itself: the least positive headroom, so that room for large requests stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from policies.placement.view import Ask, blocks_of
from policies.step_time import step_time
from policies.vocabulary import WorkerLoad

__all__ = ["best_fit", "equal_until_s", "first_token_s", "place"]

#: Estimates closer than this share of the better one are equal: they are not more exact than that.
TOLERANCE = 0.1
#: A gain smaller than a step or two is noise. What a prefix hit of a few blocks saves is more.
TOLERANCE_STEPS = 2.0


def place(ask: Ask, loads: Sequence[WorkerLoad]) -> str | None:
    """The worker for a request, by full reports of workers of its model; None if there are none.

    If none could ever hold it, the one with the longest context: its scheduler says what is wrong with the request.
    """
    if not loads:
        return None
    fitting = [load for load in loads if ask.end <= load.max_context and blocks_of(ask.end - 1) <= load.blocks]
    if not fitting:
        return max(loads, key=lambda load: (load.max_context, load.blocks)).worker
    waits = [(first_token_s(load, ask), load) for load in fitting]
    best, least = min(waits, key=lambda wait: wait[0])
    bound = equal_until_s(best, _decode_step_s(least))
    return max((load for wait, load in waits if wait <= bound), key=lambda load: _affinity(load, ask)).worker


def equal_until_s(first_token_s: float, step_s: float) -> float:
    """Estimates of a first token up to this are as good as the best one."""
    return first_token_s * (1 + TOLERANCE) + TOLERANCE_STEPS * step_s


def best_fit(headrooms: Sequence[tuple[str, float]]) -> str | None:
    """The worker with the least headroom that is not negative; None if all are."""
    return min(((room, worker) for worker, room in headrooms if room >= 0), default=(0.0, None))[1]


def first_token_s(load: WorkerLoad, ask: Ask) -> float:
    """Roughly when the first token would come: the prompts before it, its own, and the wait for a slot and blocks.

    A mean without any upper quantile: for comparing workers, not for promises.
    """
    ahead = sum(row.prefill_left for row in load.requests if row.prefill_left > 1 and row.tier <= ask.tier)
    decoding = [row for row in load.requests if row.prefill_left <= 1 and not row.waits]
    room = max(1, load.tokens_per_step - len(decoding))
    steps = -(-(ahead + ask.tokens) // room)
    tokens, decode_s = ahead + ask.tokens, _decode_step_s(load)
    dense_s = steps * decode_s + load.step_time.per_token_s * tokens
    attended_s = load.step_time.per_attended_s * ask.tokens * ask.tokens / 2
    return dense_s + attended_s + _release_steps(load, ask.tokens) * decode_s


def _decode_step_s(load: WorkerLoad) -> float:
    decoding = [row for row in load.requests if row.prefill_left <= 1 and not row.waits]
    context = sum(row.context for row in decoding)
    return step_time(load.step_time, len(decoding) + 1, 0.0, context, len(decoding) + 1)


def _release_steps(load: WorkerLoad, prompt: int) -> int:
    """Steps until enough rows have ended for a slot and for the blocks of a prompt, at the longest outputs."""
    slots = 1 - load.free_slots
    blocks = blocks_of(prompt) - load.free_blocks
    for row in load.requests:
        if row.context == 0:  # it waits, and is before us
            slots += 1
            blocks += blocks_of(row.prefill_left)
    steps = 0
    for row in sorted((row for row in load.requests if row.context), key=lambda row: row.outputs_left):
        if slots <= 0 and blocks <= 0:
            break
        slots -= 1
        blocks -= blocks_of(row.context)
        steps = row.outputs_left
    return steps


def _affinity(load: WorkerLoad, ask: Ask) -> bytes:
    """Rendezvous hashing: requests that begin alike prefer the same worker, and a worker's death moves only its own."""
    return blake2b(load.worker.encode() + b"\0" + ask.affinity, digest_size=8).digest()
