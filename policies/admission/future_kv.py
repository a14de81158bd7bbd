"""The future peak of KV, and when a newcomer fits under it (Past-Future, LightLLM; `_can_add` of S-LoRA).

Every row grows by a token a step and gives all back at its end, so the memory in use peaks just before some row ends. A
newcomer fits if the highest of these peaks, with it among them, stays under the capacity.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["Held", "earliest_start", "peak"]

#: Outputs still to come, and tokens held now.
Held = tuple[int, float]


def peak(rows: Sequence[Held], tokens: float, outputs: int, start: int = 0) -> float:
    """The most tokens held at once from step `start` on, when one that holds `tokens`, with `outputs` to come, starts.

    `rows` are those here now, the longest to come first. O(len(rows)).
    """
    most = held = 0.0
    count, placed = 0, False
    # In the coordinates of now, rows grew by `start` until then and have that much less to come, so the sum at the end
    # of the k-th is the same as today's: tokens of the k longest, plus k times what the k-th has to come.
    for left, mine in rows:
        if left <= start:
            break
        if not placed and left - start <= outputs:
            placed = True
            held += tokens
            count += 1
            most = held + (start + outputs) * count - start
        held += mine
        count += 1
        now = held + count * left
        if placed:
            now -= start
        if now > most:
            most = now
    if not placed:
        most = max(most, held + tokens + (count + 1) * (start + outputs) - start)
    return most


def earliest_start(rows: Sequence[Held], tokens: float, outputs: int, capacity: float) -> int:
    """Steps to wait until the newcomer fits: 0, or the end of some row. As a rule the first that will do.

    `rows` in any order. The newcomer must fit when it is alone: tokens + outputs <= capacity.
    """
    if sum([left + mine for left, mine in rows]) + tokens + outputs <= capacity:
        return 0
    rows = sorted(rows, reverse=True)
    if peak(rows, tokens, outputs) <= capacity:
        return 0
    ends = sorted({left for left, _ in rows})
    # Not strictly monotone (rows that outlive the newcomer grow meanwhile), but where a bisection ends, it fits.
    index = bisect_left(ends, True, key=lambda end: peak(rows, tokens, outputs, end) <= capacity)
    return ends[min(index, len(ends) - 1)]
