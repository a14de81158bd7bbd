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

#: Fewer names than this are not worth looking through.
_FEW_NAMES = 1024


class SingleFlight:
    """Which row computes which block first."""

    __slots__ = ("_leaders", "_least", "_look_at")

    def __init__(self, least_tokens: int) -> None:
        self._least = max(1, least_tokens // BLOCK_SIZE)
        self._leaders: dict[bytes, Row] = {}  # by the name of each block that they compute
        self._look_at = _FEW_NAMES

    def __deepcopy__(self, memo: dict[int, object]) -> SingleFlight:
        """Of the same leaders, without those that compute nothing any more."""
        other = memo[id(self)] = object.__new__(SingleFlight)
        other._least, other._look_at = self._least, self._look_at
        other._leaders = {name: deepcopy(row, memo) for name, row in self._leaders.items() if row.slot >= 0}
        return other

    def leads(self, row: Row, start: Start) -> None:
        """A row started: it computes what it did not hit."""
        if len(self._leaders) >= self._look_at:
            # Each entry keeps its row alive with all its tokens: let go of those without a slot, at a constant cost a
            # name.
            self._leaders = {name: leader for name, leader in self._leaders.items() if leader.slot >= 0}
            self._look_at = max(_FEW_NAMES, 2 * len(self._leaders))
        first = start.computed // BLOCK_SIZE
        names = row.chain[first : (len(row.tokens) - 1) // BLOCK_SIZE]
        if names and names[0] in self._leaders:
            leaders = self._leaders
            names = [n for i, n in enumerate(names, first) if n not in leaders or not _computing(leaders[n], i)]
        # Names are chained: where nobody leads the first, nobody leads those behind it.
        self._leaders.update(dict.fromkeys(names, row))

    def wait(self, row: Row, start: Start) -> bool:
        """Whether a waiting row gains enough by letting another compute the blocks that it misses."""
        first = start.computed // BLOCK_SIZE
        last = first + self._least - 1
        chain = row.chain
        if last >= (len(row.tokens) - 1) // BLOCK_SIZE:
            return False
        return self._leads(chain[first], first, row) and self._leads(chain[last], last, row)

    def _leads(self, name: bytes, block: int, row: Row) -> bool:
        leader = self._leaders.get(name)
        return leader is not None and leader.tier <= row.tier and _computing(leader, block)


def _computing(row: Row, block: int) -> bool:
    return row.place in (Place.prefilling, Place.decoding, Place.draining) and row.registered <= block < len(row.blocks)
