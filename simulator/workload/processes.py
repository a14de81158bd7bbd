"""When requests arrive: renewal processes, with a rate that may change in steps.

Gaps are drawn on an operational clock that runs at rate 1, and mapped to seconds through the integral of the rate; so a
process keeps its coefficient of variation through a burst.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

__all__ = ["MOST_CV", "Process", "Step", "gaps", "instants", "poisson_count", "weibull_shape"]

Process = Literal["poisson", "gamma", "weibull", "constant"]
#: (from_s, until_s, factor): the rate is multiplied by `factor` in [from_s, until_s).
Step = tuple[float, float, float]

#: Coefficients of variation are taken from 1 / MOST_CV to MOST_CV; beyond, gaps are nearly all zero.
MOST_CV = 15.0


def gaps(process: Process, cv: float, rng: random.Random) -> Callable[[], float]:
    """Draws gaps of mean 1. `cv` is obeyed by gamma and weibull."""
    if process == "constant":
        return lambda: 1.0
    if process == "poisson":
        return lambda: rng.expovariate(1.0)
    if process == "gamma":
        shape = 1 / cv**2
        return lambda: rng.gammavariate(shape, 1 / shape)
    shape = weibull_shape(cv)
    scale = 1 / math.gamma(1 + 1 / shape)
    return lambda: rng.weibullvariate(scale, shape)


def weibull_shape(cv: float) -> float:
    """The shape with that coefficient of variation, by bisection: it falls as the shape grows."""
    low, high = 0.1, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        squared = math.exp(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle)) - 1
        low, high = (middle, high) if squared > cv**2 else (low, middle)
    return (low + high) / 2


def instants(
    process: Process, cv: float, *, rate_rps: float, duration_s: float, steps: Sequence[Step], rng: random.Random
) -> Iterator[float]:
    """Arrivals in [0, duration_s), in order. Steps may overlap: their factors multiply.

    A constant process begins at 0. The others have run before: one that began at 0 would open with a burst of its own,
    (cv² - 1) / 2 arrivals too many.
    """
    gap = gaps(process, cv, rng)
    at = -1.0 if process == "constant" else -50.0 * max(1.0, cv**2)
    edges = sorted({0.0, duration_s, *(edge for step in steps for edge in step[:2] if 0 < edge < duration_s)})
    while at < 0:
        at += gap()
    begun = 0.0  # operational time at the beginning of the piece
    for start, end in pairwise(edges):
        rate = rate_rps * math.prod(factor for from_s, until_s, factor in steps if from_s <= start < until_s)
        length = (end - start) * rate
        while at < begun + length:
            yield min(start + (at - begun) / rate, math.nextafter(end, 0.0))
            at += gap()
        begun += length


def poisson_count(mean: float, rng: random.Random) -> int:
    """A draw of the Poisson distribution, in time proportional to it."""
    count, at = 0, rng.expovariate(1.0)
    while at < mean:
        count += 1
        at += rng.expovariate(1.0)
    return count
