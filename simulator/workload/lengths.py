"""How long prompts and outputs are: the distributions of a synthetic workload, chosen by name in its file."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import msgspec

from simulator.errors import BadSynthetic
from simulator.workload.fields import LONGEST_TOKENS

__all__ = ["Constant", "Empirical", "Exponential", "Lengths", "Lognormal", "Uniform", "drawer"]


class _Distribution(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="distribution"):
    pass


class Constant(_Distribution, frozen=True, kw_only=True, tag="constant"):
    """All alike."""

    tokens: int


class Uniform(_Distribution, frozen=True, kw_only=True, tag="uniform"):
    """From `low` to `high`, both included."""

    low: int
    high: int


class Exponential(_Distribution, frozen=True, kw_only=True, tag="exponential"):
    """With that mean before `cap`, above which draws are cut to it (as in the continuous-batching benchmarks)."""

    mean: float
    cap: int


class Lognormal(_Distribution, frozen=True, kw_only=True, tag="lognormal"):
    """exp(ln median + sigma · normal), cut to [1, cap]: prompts of chats have sigma about 1, code more."""

    median: float
    sigma: float
    cap: int = 131_072


class Empirical(_Distribution, frozen=True, kw_only=True, tag="empirical"):
    """One of the values, each as likely."""

    values: tuple[int, ...]


Lengths = Constant | Uniform | Exponential | Lognormal | Empirical


def drawer(where: str, lengths: Lengths, rng: random.Random) -> Callable[[], int]:
    """Draws lengths, from 1 token.

    :param where: named in errors.
    :raises BadSynthetic: a parameter is impossible.
    """
    if isinstance(lengths, Constant):
        tokens = _tokens(f"{where}.tokens", lengths.tokens)
        return lambda: tokens
    if isinstance(lengths, Uniform):
        low, high = _tokens(f"{where}.low", lengths.low), _tokens(f"{where}.high", lengths.high)
        if high < low:
            raise BadSynthetic(f"{where}.high is {high}; at least low, {low}, is needed")
        return lambda: rng.randint(low, high)
    if isinstance(lengths, Exponential):
        mean, cap = _above(f"{where}.mean", lengths.mean), _tokens(f"{where}.cap", lengths.cap)
        return lambda: min(cap, max(1, round(rng.expovariate(1 / mean))))
    if isinstance(lengths, Lognormal):
        mu = math.log(_above(f"{where}.median", lengths.median))
        cap, sigma = _tokens(f"{where}.cap", lengths.cap), lengths.sigma
        if not 0 <= sigma <= 10:
            raise BadSynthetic(f"{where}.sigma is {sigma}; a number from 0 to 10 is needed")
        return lambda: max(1, round(min(float(cap), math.exp(min(700.0, rng.gauss(mu, sigma))))))
    if not lengths.values:
        raise BadSynthetic(f"{where}.values is empty; at least one length is needed")
    values = [_tokens(f"{where}.values", each) for each in lengths.values]
    return lambda: values[int(rng.random() * len(values))]


def _tokens(where: str, value: int) -> int:
    if not 1 <= value <= LONGEST_TOKENS:
        raise BadSynthetic(f"{where} is {value}; tokens from 1 to {LONGEST_TOKENS} are needed")
    return value


def _above(where: str, value: float) -> float:
    if not math.isfinite(value) or value <= 0:
        raise BadSynthetic(f"{where} is {value}; a finite number above 0 is needed")
    return value
