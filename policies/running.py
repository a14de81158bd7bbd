"""The rows that have slots: three lists, and what is counted over them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from policies.kv import blocks_for
from policies.rows import Place, Row

__all__ = ["Running"]


class Running:
    """Slots 0 … size - 1 and the rows in them. A slot that ends is in `drops` until a step tells the worker."""

    __slots__ = (
        "_free",
        "context",
        "decoding",
        "draining",
        "drops",
        "max_preemptions",
        "prefilling",
        "reserved",
        "size",
        "tiers",
    )

    def __init__(self, size: int, *, max_preemptions: int) -> None:
        self.size = size
        self.max_preemptions = max_preemptions
        self.decoding: list[Row] = []
        self.prefilling: list[Row] = []  # in the order in which they share a step's room
        self.draining: list[Row] = []
        self.drops: list[int] = []
        self.context = 0  # Σ position over the decoding rows
        self.reserved = 0  # blocks that the immune rows may come to need
        self.tiers: dict[int, int] = {}  # rows of each tier that has any
        self._free = list(range(size - 1, -1, -1))

    def __len__(self) -> int:
        return self.size - len(self._free)

    def __iter__(self) -> Iterator[Row]:
        return chain(self.decoding, self.prefilling, self.draining)

    @property
    def free_slots(self) -> int:
        """Slots without a row."""
        return len(self._free)

    def immune(self, row: Row) -> bool:
        """Whether a row may not be preempted (any more)."""
        return row.preemptions >= self.max_preemptions

    def enter(self, row: Row) -> None:
        """A waiting row takes a slot and is to be prefilled."""
        row.slot = self._free.pop()
        row.place = Place.prefilling
        self.prefilling.append(row)
        self.tiers[row.tier] = self.tiers.get(row.tier, 0) + 1
        if self.immune(row):
            self.reserved += worst_case(row)

    def prefilled(self, row: Row) -> None:
        """All known tokens of a row are planned, and an output with them: it decodes, or that was its last."""
        self.prefilling.remove(row)
        if row.left:
            row.place = Place.decoding
            self.decoding.append(row)
            self.context += row.position
        else:
            row.place = Place.draining
            self.draining.append(row)

    def drained(self, rows: list[Row]) -> None:
        """The last outputs of these decoding rows are planned."""
        for row in rows:
            row.place = Place.draining
            self.context -= row.position
        self.draining.extend(rows)
        self.decoding = [row for row in self.decoding if row.left]

    def leave(self, row: Row, place: Place) -> None:
        """A row gives up its slot, for `place`."""
        if row.place is Place.decoding:
            self.decoding.remove(row)
            self.context -= row.position
        elif row.place is Place.prefilling:
            self.prefilling.remove(row)
        else:
            self.draining.remove(row)
        row.place = place
        self.tiers[row.tier] -= 1
        if not self.tiers[row.tier]:
            del self.tiers[row.tier]
        self.drops.append(row.slot)
        self._free.append(row.slot)
        row.slot = -1
        if self.immune(row):
            self.reserved -= worst_case(row)


def worst_case(row: Row) -> int:
    """Blocks of a row at its longest. The last output is never computed."""
    return blocks_for(row.end - 1)
