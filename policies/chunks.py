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
        pace_s, lead_s = aimed_s(row.tpot_s), row.lead_s(now)
        steps = max(1, row.end - len(row.tokens))
        allowed = pace_s + lead_s / min(LEND_STEPS, steps)
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

    def fits(chunk: int) -> bool:
        return predict(tokens + chunk, attended + chunk * (position + chunk / 2), context, rows + 1) <= limit_s

    least = min(least, most)
    if fits(most):
        return most
    low, high = least // BLOCK_SIZE, -(-most // BLOCK_SIZE)  # in blocks: high does not fit, low is taken to
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle * BLOCK_SIZE):
            low = middle
        else:
            high = middle
    return max(least, min(most, low * BLOCK_SIZE)) if low > least // BLOCK_SIZE else least
