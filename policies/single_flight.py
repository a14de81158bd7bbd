"""Rows that share a prefix nobody has computed yet: one computes it, the others wait for those blocks alone.

Waiting never convoys: blocks that are resident are taken at once, only the very next missing block is looked for among
those being computed, and a row does not wait for one of a lower class, nor to save only a few tokens.
"""

from __future__ import annotations

from copy import deepcopy

from policies.kv import Start
from policies.rows import Place, Row
from policies.vocabulary import BLOCK_SIZE

__all__ = ["SingleFlight"]

#: Fewer rows than this are not worth looking through.
_FEW_ROWS = 64


class SingleFlight:
    """Which rows compute blocks of their prompts: as a rule a handful. A start costs as much as there are of them."""

    __slots__ = ("_leaders", "_least", "_look_at")

    def __init__(self, least_tokens: int) -> None:
        self._least = max(1, least_tokens // BLOCK_SIZE)
        self._leaders: dict[Row, int] = {}  # and up to which of its blocks each computes
        self._look_at = _FEW_ROWS

    def __deepcopy__(self, memo: dict[int, object]) -> SingleFlight:
        """Of the same leaders, without those that compute nothing any more."""
        other = memo[id(self)] = object.__new__(SingleFlight)
        other._least, other._look_at = self._least, self._look_at
        other._leaders = {deepcopy(row, memo): end for row, end in self._alive().items()}
        return other

    def leads(self, row: Row) -> None:
        """A row started: it computes what it did not hit."""
        if len(self._leaders) >= self._look_at:
            # Each entry keeps its row alive with all its tokens: let go of those that are done, at a constant cost.
            self._leaders = self._alive()
            self._look_at = max(_FEW_ROWS, 2 * len(self._leaders))
        self._leaders[row] = (len(row.tokens) - 1) // BLOCK_SIZE

    def wait(self, row: Row, start: Start) -> bool:
        """Whether a waiting row gains enough by letting another compute the blocks that it misses."""
        first = start.computed // BLOCK_SIZE
        last = first + self._least - 1
        if last >= (len(row.tokens) - 1) // BLOCK_SIZE:
            return False
        self._leaders = self._alive()
        return self._is_led(row, first) and self._is_led(row, last)

    def _is_led(self, row: Row, block: int) -> bool:
        """Whether a row of its class or a higher one computes the content of this block."""
        name = row.chain[block]
        return any(
            leader.registered <= block < min(end, len(leader.blocks))
            and leader.chain[block] == name
            and leader.tier <= row.tier
            for leader, end in self._leaders.items()
        )

    def _alive(self) -> dict[Row, int]:
        return {row: end for row, end in self._leaders.items() if _computing(row) and row.registered < end}


def _computing(row: Row) -> bool:
    return row.place in (Place.prefilling, Place.decoding, Place.draining)
