"""Mooncake's early rejection: turn a request away before its prefill, if it could not be decoded after it (FAST'25).

What a prefill is worth is decided only when it ends, so the question is how loaded the decode workers will be then. Its
naive form asks how loaded they are now, and makes the load of both pools swing against each other: while decoding is
full nothing is let in, so prefilling runs dry, so decoding empties, so everything is let in at once, and all of that
arrives at the decode workers together, a prefill later. The predicted form counts what will have ended by then and what
is on its way, and does not swing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from policies.disaggregation import DecodeState, Foreseen, foresee

__all__ = ["least_load"]


def least_load(
    states: Iterable[DecodeState],
    load: Callable[[Foreseen], float],
    *,
    prefill_ends_s: float,
    now: float,
    predicted: bool = True,
) -> float:
    """The load of the decode worker that has least when a request's prefill ends; inf if there is none. Let it in if
    that is at most 1.

    `load` says what a worker in that state bears with the request, as a share of what it can: Mooncake takes the time
    between its tokens over the promised one. With `predicted` False the state is that of now, without what has been
    promised to the worker and is not there yet.
    """
    if predicted:
        seen = [foresee(state, prefill_ends_s, now=now) for state in states]
    else:
        seen = [foresee(state._replace(coming=()), now, now=now) for state in states]
    return min(map(load, seen), default=float("inf"))
