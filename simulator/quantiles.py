"""Quantiles and bootstrap intervals, without numpy: a simulation needs nothing but the standard library."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

__all__ = ["bootstrap_mean", "quantile"]


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which `share` of an ordered sequence lies, interpolated; None of nothing."""
    if not ordered:
        return None
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of `values` and its percentile bootstrap interval (Efron 1979): (mean, low, high).

    Deterministic for a seed. With one value, the interval is that value.

    :raises ValueError: if there are no values.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    mean = fmean(values)
    if len(values) == 1:
        return mean, mean, mean
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = quantile(means, (1 - level) / 2), quantile(means, (1 + level) / 2)
    assert low is not None
    assert high is not None
    return mean, low, high
