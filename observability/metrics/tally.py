"""A histogram of plain ints, for hot paths: a third of what one of the library costs.

Not for several threads: who tallies and who collects share an event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

__all__ = ["Tally"]


class Tally:
    """Counts values by bucket. `bounds` are the upper edges, inclusive, rising; one without bound is added."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as an exposition has them."""
        found, below = [], 0
        for edge, count in zip((*self._bounds, inf), self.counts, strict=True):
            below += count
            found.append(("+Inf" if edge == inf else repr(float(edge)), float(below)))
        return found
