"""Prefill and decode on workers of their own: which of either takes a request.

DistServe (OSDI'24): a request is prefilled by the worker with the least tokens queued (the placement `least-loaded`, of
requests without outputs), first come first served in batches of at most L_m tokens (the batching `continuous`, on
workers whose `tokens_per_step` is L_m), and then decoded by another, which pulls its KV when it has room: until then
the memory of the prefill worker is the buffer. Splitwise (ISCA'24) names both workers at arrival, so that room is there
before the KV comes. Mooncake (FAST'25) judges a decode worker not as it is now but as it will be when the prefill ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from policies.vocabulary import BLOCK_SIZE

__all__ = [
    "Coming",
    "DecodeState",
    "Foreseen",
    "Role",
    "choose_decode",
    "foresee",
    "kv_bytes",
    "split_workers",
]

Role = Literal["prefill", "decode", "mixed"]


def split_workers(workers: int, *, prefill: int = 0) -> tuple[int, int]:
    """How many of the workers prefill, and how many decode. `prefill` 0: half, and the odd one decodes.

    :raises ValueError: if either would have none.
    """
    first = prefill or workers // 2
    if not 0 < first < workers:
        raise ValueError(f"{first} of {workers} workers for prefills: there must be at least one of each kind")
    return first, workers - first


def kv_bytes(tokens: int, block_bytes: int) -> int:
    """Of the KV of so many tokens, which travels in whole blocks."""
    return -(-tokens // BLOCK_SIZE) * block_bytes


class Coming(NamedTuple):
    """A request that has been promised to a decode worker and is not there yet."""

    at_s: float  # instant at which its KV is expected
    tokens: int
    outputs: int  # still expected then


class DecodeState(NamedTuple):
    """A worker that decodes. `rows`: (tokens known, outputs still expected) of each request that is there."""

    worker: str
    blocks: int
    slots: int
    step_s: float  # of its steps now
    rows: Sequence[tuple[int, int]]
    coming: Sequence[Coming] = ()


class Foreseen(NamedTuple):
    """A decode worker at a later instant."""

    worker: str
    running: int
    free_blocks: int  # negative: what was promised will not fit
    context: int  # tokens known, all requests together


def foresee(state: DecodeState, at_s: float, *, now: float) -> Foreseen:
    """The worker at `at_s`, if it goes on as it does and takes nothing that was not promised to it (Mooncake's
    prediction). Steps keep their present length, and every request has the outputs that are expected of it."""
    running = context = used = 0
    step_s = max(state.step_s, 1e-9)
    steps = int(max(0.0, at_s - now) / step_s)
    for tokens, outputs in state.rows:
        if outputs > steps:
            running += 1
            context += tokens + steps
            used += -(-(tokens + steps) // BLOCK_SIZE)
    for coming in state.coming:
        if coming.at_s > at_s:
            continue
        passed = int((at_s - max(now, coming.at_s)) / step_s)
        if coming.outputs > passed:
            running += 1
            context += coming.tokens + passed
            used += -(-(coming.tokens + passed) // BLOCK_SIZE)
    return Foreseen(state.worker, running, state.blocks - used, context)


def choose_decode(states: Iterable[DecodeState], *, tokens: int, at_s: float, now: float) -> Foreseen | None:
    """The worker with the most memory free when the prefill of a request of `tokens` ends, of those that then have a
    slot and room for it; where none has, the one that lacks the least. None: there is no worker.

    Ties go to fewer running, then by name. With `at_s` = `now` it judges by the present state, as naive rules do.
    """
    need = -(-tokens // BLOCK_SIZE) + 1
    best: tuple[tuple[bool, int, int, str], Foreseen] | None = None
    for state in states:
        seen = foresee(state, at_s, now=now)
        fits = seen.running < state.slots and seen.free_blocks >= need
        rank = (not fits, -seen.free_blocks, seen.running, seen.worker)
        if best is None or rank < best[0]:
            best = rank, seen
    return None if best is None else best[1]
