"""What a scheduler tells of each step that came back, to whoever measures, traces or shows it.

One note serves all of them, so that the way of a step through the actor knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from policies.rows import Flight
from policies.vocabulary import NewRow, Request, StepDone

__all__ = ["StepNote", "StepObserver"]


class StepNote:
    """One acknowledged step. Valid during the call alone: its rows go on.

    `at` is the instant of its result, in seconds of the scheduler's monotonic clock.
    """

    __slots__ = ("_flight", "actual_s", "at", "epoch", "number", "predicted_s", "worker")

    def __init__(
        self, worker: str, flight: Flight, done: StepDone, *, predicted_s: float, at: float, epoch: int = 0
    ) -> None:
        self._flight = flight
        self.worker = worker
        self.epoch = epoch  # of the worker's lease
        self.number = done.number
        self.predicted_s = predicted_s
        self.actual_s = done.duration_s  # on the device
        self.at = at

    @property
    def rows(self) -> int:
        """How many requests ran in it."""
        return len(self._flight.rows)

    @property
    def decode_tokens(self) -> int:
        """Tokens of rows that decode: one each."""
        return self._flight.decodes

    @property
    def prefill_tokens(self) -> int:
        """Tokens of chunks of prompts."""
        return self._flight.tokens - self._flight.decodes

    def chunks(self) -> Iterator[tuple[Request, int]]:
        """The requests that had a chunk of a prompt computed, and its tokens."""
        decodes = self._flight.decodes
        for row, tokens in zip(self._flight.rows[decodes:], self._flight.step.counts[decodes:], strict=False):
            yield row.request, tokens

    def entered(self) -> list[NewRow]:
        """The rows that got a slot with this step: for the first time, or again."""
        return self._flight.step.new

    def requests(self) -> Iterator[Request]:
        """All that ran in it, those that decode first."""
        for row in self._flight.rows:
            yield row.request


class StepObserver(Protocol):
    """Hears of every step. Called on the hot path: it must be cheap, and must not block or raise."""

    def stepped(self, note: StepNote) -> None:
        """A step came back."""
        ...
