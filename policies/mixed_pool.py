"""Splitwise's third pool: workers that do both, borrowed from either side while its queue is long (ISCA'24).

Between the workers that prefill and those that decode there is a mixed pool, empty at first. When a side's queue
passes its threshold, a worker of the other side joins the pool and serves the longer queue beside its own work. Once
that queue is short again it takes no more of it, and when the last of it has left, it goes back: so no worker is ever
sent back with work that its side does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from policies.disaggregation import Role

__all__ = ["Change", "Duty", "MixedPool", "Side"]

Side = Literal["prefill", "decode"]


class Duty(NamedTuple):
    """What is on a worker."""

    prefill_tokens: int  # queued and under way
    decoding: int  # requests


class Change(NamedTuple):
    """A worker has a new role."""

    worker: str
    role: Role


class MixedPool:
    """Roles of the workers of one model. `borrow_at` and `return_at` are queued tokens (prefill) or requests (decode)
    for each worker that serves that side; between them nothing changes, so that roles do not flap.

    :raises ValueError: if a side has no worker, or a threshold to return is not under that to borrow.
    """

    def __init__(
        self,
        sides: Mapping[str, Side],
        *,
        borrow_at: Mapping[Side, float],
        return_at: Mapping[Side, float],
    ) -> None:
        both: tuple[Side, ...] = ("prefill", "decode")
        for side in both:
            if side not in sides.values():
                raise ValueError(f"no worker for {side}: there must be at least one of each kind")
            if not 0 <= return_at[side] < borrow_at[side]:
                raise ValueError(f"{side}: returns at {return_at[side]}, borrows at {borrow_at[side]}; must be below")
        self._sides = dict(sides)
        self._borrowed: dict[str, Side] = {}  # worker → the side it helps
        self._retiring: set[str] = set()  # of those, who take no more for that side
        self._borrow_at, self._return_at = borrow_at, return_at

    def role(self, worker: str) -> Role:
        """What the worker may be given now."""
        return "mixed" if worker in self._borrowed else self._sides[worker]

    def serving(self, side: Side) -> list[str]:
        """The workers that take new work of a side: its own, and those that help it."""
        helping = [w for w, helped in self._borrowed.items() if helped == side and w not in self._retiring]
        return [worker for worker, own in self._sides.items() if own == side] + helping

    def review(self, duties: Mapping[str, Duty]) -> list[Change]:
        """Give back who is drained, retire who is not needed, borrow one worker for a side whose queue is too long.
        Call it at each change of a queue: O(workers)."""
        changes = []
        for worker, helped in list(self._borrowed.items()):
            if self._queue(helped, duties) <= self._return_at[helped]:
                self._retiring.add(worker)
            if worker in self._retiring and not _amount(duties[worker], helped):
                del self._borrowed[worker]
                self._retiring.discard(worker)
                changes.append(Change(worker, self._sides[worker]))
        sides: tuple[Side, ...] = ("prefill", "decode")
        for helped in sides:
            if self._queue(helped, duties) > self._borrow_at[helped]:
                changes += self._borrow(helped, duties)
        return changes

    def _borrow(self, helped: Side, duties: Mapping[str, Duty]) -> list[Change]:
        """First who was about to go back, then of the other side's workers the one with the least to do. The last that
        only serves its own side stays, and a side that is too busy itself lends nobody."""
        for worker in sorted(self._retiring):
            if self._borrowed[worker] == helped:
                self._retiring.discard(worker)
                return []
        own: Side = "decode" if helped == "prefill" else "prefill"
        pure = [worker for worker, side in self._sides.items() if side == own and worker not in self._borrowed]
        if len(pure) < 2 or self._queue(own, duties) > self._borrow_at[own]:
            return []
        lender = min(pure, key=lambda worker: (_amount(duties[worker], own), worker))
        self._borrowed[lender] = helped
        return [Change(lender, "mixed")]

    def _queue(self, side: Side, duties: Mapping[str, Duty]) -> float:
        serving = self.serving(side)
        return sum(_amount(duties[worker], side) for worker in serving) / len(serving)


def _amount(duty: Duty, side: Side) -> int:
    return duty.prefill_tokens if side == "prefill" else duty.decoding
