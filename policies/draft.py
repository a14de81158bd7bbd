"""A step under construction."""

from __future__ import annotations

from policies.rows import Flight, Row
from policies.vocabulary import NewRow, Step

__all__ = ["Draft"]


class Draft:
    """Collects the parts of a step, and what its duration depends on. Decode rows are added before any chunk."""

    __slots__ = (
        "attended",
        "budget",
        "context",
        "counts",
        "decodes",
        "grown",
        "new",
        "new_tokens",
        "number",
        "preempted",
        "rows",
        "samples",
        "slots",
        "swap_in",
        "swap_out",
        "tokens",
    )

    def __init__(self, number: int, budget: int) -> None:
        self.number = number
        self.budget = budget  # tokens left
        self.rows: list[Row] = []
        self.slots: list[int] = []
        self.counts: list[int] = []
        self.samples: list[bool] = []
        self.decodes = 0
        self.new: list[NewRow] = []
        self.new_tokens = 0
        self.grown: list[tuple[int, int]] = []
        self.swap_out: list[tuple[int, int]] = []
        self.swap_in: list[tuple[int, int]] = []
        self.preempted = False
        self.tokens = 0
        self.attended = 0.0
        self.context = 0

    @property
    def empty(self) -> bool:
        """Nothing that a worker should hear of now: slots that end can wait for the next step."""
        return not self.rows and not self.swap_out

    def add_decodes(self, rows: list[Row], context: int) -> None:
        """One token of each of these rows; `context` is the sum of their positions before it."""
        self.rows = rows
        self.slots = [row.slot for row in rows]
        self.counts = [1] * len(rows)
        self.decodes = self.tokens = len(rows)
        self.budget -= len(rows)
        self.context = context

    def add_chunk(self, row: Row, count: int, position: int, *, samples: bool) -> None:
        """`count` tokens of a row from `position` on; `samples`: they are all it knows."""
        self.rows.append(row)
        self.slots.append(row.slot)
        self.counts.append(count)
        self.samples.append(samples)
        self.tokens += count
        self.budget -= count
        self.attended += count * (position + count / 2)

    def seal(self, drop: list[int]) -> Flight:
        """The finished step."""
        step = Step(self.number, drop, self.swap_out, self.swap_in, self.new, self.slots, self.counts, self.grown)
        flight = Flight(step, self.rows, self.samples, self.decodes)
        flight.tokens, flight.attended, flight.context = self.tokens, self.attended, self.context
        return flight
