"""When each token came, from the records of steps: the time between tokens, one by one.

The mean pace of a request (TPOT) hides a stall: twenty tokens in time and one that came a second late have a good mean.
What a reader sees is the gap.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import inf

from simulator.records import Outcome, StepRecord

__all__ = ["token_gaps", "token_instants"]


def token_instants(steps: Iterable[StepRecord], outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """The instants of all outputs of each request that had its first one, in order.

    Of requests that were preempted and computed anew the first output after that comes with a prefill, which a record
    cannot tell from a part of one: it is missing, so the pause counts up to the next.
    """
    ends = {
        each.id: (each.first_token_s, inf if each.finished_s is None else each.finished_s)
        for each in outcomes
        if each.first_token_s is not None
    }
    instants = {request: [first_s] for request, (first_s, _) in ends.items()}
    for step in sorted(steps, key=lambda step: step.ended_s):
        for request, prefill in zip(step.requests, step.prefill, strict=True):
            if prefill or request not in ends:
                continue
            first_s, last_s = ends[request]
            # A row may be in one more step after its last output: it samples nothing there.
            if first_s < step.ended_s <= last_s:
                instants[request].append(step.ended_s)
    return instants


def token_gaps(steps: Iterable[StepRecord], outcomes: Iterable[Outcome]) -> list[tuple[float, float]]:
    """(instant, seconds since the token before it of the same request) of every output but the first ones, in order of
    time."""
    gaps = [
        (after, after - before)
        for instants in token_instants(steps, outcomes).values()
        for before, after in pairwise(instants)
    ]
    return sorted(gaps)
