"""How large a chunk of a prompt a step takes, so that running rows keep their pace.

Sarathi-Serve fixes a token budget once; here the budget is a time, that of the tightest pace among the running rows,
and the chunk is the largest whose predicted step stays under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Protocol

from policies.pace import LEND_STEPS, aimed_s
from policies.rows import Row
from policies.step_time import Features, Ratios
from policies.vocabulary import BLOCK_SIZE, StepTimeCoefficients

__all__ = ["StepTime", "largest_chunk", "tightest_pace_s"]


class StepTime(Protocol):
    """The model of step durations that a scheduler asks and teaches."""

    @property
    def coefficients(self) -> StepTimeCoefficients:
        """The present fit."""

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        """The mean duration of a step in seconds."""

    def observe(self, features: Features, actual_s: float) -> None:
        """Learn from a step."""

    def ratios(self) -> Ratios:
        """Quantiles of actual over predicted."""


def tightest_pace_s(rows: Iterable[Row], step_time: StepTime, now: float) -> float:
    """The longest step that keeps the pace of every decoding row; inf if none was promised one.

    A row that is ahead lends its lead (Niyama, SLOs-Serve); one that is behind must catch up until it ends. One that
    not even an otherwise empty step would serve in time binds nobody: it would only make others late too.
    """
    tightest = inf
    for row in rows:
        if row.tpot_s is None:
            continue
        lead_s, steps = row.lead_s(now), row.end - len(row.tokens)
        if steps < 1:
            steps = 1
        allowed = aimed_s(row.tpot_s) + lead_s / (LEND_STEPS if steps > LEND_STEPS else steps)
        if allowed < tightest:
            alone_s = step_time.predict(1, 0.0, row.computed, 1)
            if alone_s <= row.tpot_s + lead_s / steps:
                tightest = min(tightest, max(allowed, alone_s))
    return tightest


def largest_chunk(
    step_time: StepTime,
    *,
    limit_s: float,
    tokens: int,
    attended: float,
    context: int,
    rows: int,
    position: int,
    most: int,
    least: int,
) -> int:
    """Tokens of a prompt, at `position`, to add to a step that has `tokens`, `attended`, `context` and `rows` already.

    Between `least` (progress, whatever it costs) and `most`, and a multiple of a block unless it is one of these.
    """
    predict = step_time.predict

    def seconds(chunk: int) -> float:
        return predict(tokens + chunk, attended + chunk * (position + chunk / 2), context, rows + 1)

    least = min(least, most)
    most_s = seconds(most)
    if most_s <= limit_s:
        return most
    low, high = least // BLOCK_SIZE, -(-most // BLOCK_SIZE)  # in blocks: high does not fit, low is taken to
    first = low
    if high - low > 2:
        low_s = seconds(low * BLOCK_SIZE)
        if low_s > limit_s:
            return least
        # The time is convex, so the chord lies above it, and as a rule closely: what fits by the chord does, and hardly
        # any more.
        share = (limit_s - low_s) / (most_s - low_s)
        guess = int(low + share * (most / BLOCK_SIZE - low))
        if low < guess < high:
            if seconds(guess * BLOCK_SIZE) <= limit_s:
                low = guess
            else:
                high = guess
        if low + 1 < high and seconds((low + 1) * BLOCK_SIZE) > limit_s:
            high = low + 1
    while high - low > 1:
        middle = (low + high) // 2
        if seconds(middle * BLOCK_SIZE) <= limit_s:
            low = middle
        else:
            high = middle
    return max(least, min(most, low * BLOCK_SIZE)) if low > first else least
