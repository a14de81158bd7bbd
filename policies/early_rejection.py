"""Mooncake's early rejection: turn a request away before its prefill, if it could not be decoded after it (FAST'25).

What a prefill is worth is decided only when it ends, so the question is how loaded the decode workers will be then. Its
naive form asks how loaded they are now, and makes the load of both pools swing against each other: while decoding is
full nothing is let in, so prefilling runs dry, so decoding empties, so everything is let in at once, and all of that
arrives at the decode workers together, a prefill later. The predicted form counts what will have ended by then and what
is on its way, and does not swing.
"""

from __future__ import annotations

from collections.abc import Iterable

from policies.disaggregation import DecodeState, Foreseen, foresee

__all__ = ["decode_load", "lets_in"]


def decode_load(seen: Foreseen, *, most_running: int, blocks: int) -> float:
    """How full a decode worker is, or will be: 1 is what it can bear. `most_running`: requests beside which the pace
    that was promised still holds; `blocks`: its memory."""
    return max(seen.running / most_running, (blocks - seen.free_blocks) / blocks)


def lets_in(
    states: Iterable[DecodeState],
    *,
    most_running: int,
    prefill_ends_s: float,
    now: float,
    predicted: bool = True,
) -> bool:
    """Whether some decode worker is under full load when the request's prefill ends; with `predicted` False, now,
    by what is there and nothing else."""
    for state in states:
        if predicted:
            seen = foresee(state, prefill_ends_s, now=now)
        else:
            seen = foresee(state._replace(coming=()), now, now=now)
        if decode_load(seen, most_running=most_running, blocks=state.blocks) < 1:
            return True
    return False
