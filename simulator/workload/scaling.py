"""A workload made denser, sparser or shorter, and split into a part to tune on and the rest.

Everything here keeps the order of arrivals, their lengths and the tenants, and begins the new workload at 0.
"""

from __future__ import annotations

import math
import random

import msgspec

from simulator.errors import BadWindow
from simulator.records import Arrival, Workload

__all__ = ["TUNING_S", "at_load", "split", "thinned", "window"]

#: What policies may be tuned on, of the trace chosen for it; figures come from the rest.
TUNING_S = 20 * 60.0


def window(workload: Workload, from_s: float = 0.0, until_s: float | None = None) -> Workload:
    """The arrivals of [from_s, until_s), with from_s as their 0. None: to the end.

    :raises BadWindow: no arrival is in it, or it ends before it begins.
    """
    end = math.inf if until_s is None else until_s
    if not 0 <= from_s < end:
        raise BadWindow(f"window from {from_s} s until {end} s; it begins at 0 or later, and ends after it begins")
    arrivals = [_moved(each, each.at_s - from_s) for each in workload.arrivals if from_s <= each.at_s < end]
    if not arrivals:
        raise BadWindow(
            f"window from {from_s} s until {end} s of {workload.name} has no arrival; it lasts {workload.duration_s} s"
        )
    return _with(workload, arrivals, workload.name)


def at_load(workload: Workload, factor: float) -> Workload:
    """The same requests in 1 / factor of the time: every gap is divided by `factor`, so bursts stay bursts.

    :raises BadWindow: the factor is not above 0 and finite.
    """
    _check(factor, "load")
    if factor == 1:
        return workload
    return _with(workload, [_moved(each, each.at_s / factor) for each in workload.arrivals], workload.name)


def thinned(workload: Workload, factor: float, *, seed: int = 0, spread_s: float = 1.0) -> Workload:
    """`factor` times as many requests in the same time: each is left out, kept, or repeated, independently.

    Of 2.3, each is there twice and with probability 0.3 a third time. Repetitions come up to `spread_s` later (drawn),
    within the workload; they have ids of their own and share the prefix of the first. Unlike `at_load` the pattern over
    the day stays as it is, and superposition makes arrivals more like a Poisson process.

    :raises BadWindow: the factor is not above 0 and finite, or nothing is left.
    """
    _check(factor, "thinning")
    draw = random.Random(f"thinning {seed}").random
    whole, part = int(factor), factor - int(factor)
    end_s = workload.duration_s
    arrivals: list[Arrival] = []
    for each in workload.arrivals:
        for copy in range(whole + (draw() < part)):
            if copy == 0:
                arrivals.append(each)
            else:
                at_s = min(end_s, each.at_s + spread_s * draw())
                arrivals.append(msgspec.structs.replace(each, id=f"{each.id}+{copy}", at_s=at_s))
    if not arrivals:
        raise BadWindow(f"thinning {workload.name} by {factor} leaves none of {len(workload.arrivals)} arrivals")
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return _with(workload, arrivals, workload.name)


def split(workload: Workload, at_s: float = TUNING_S) -> tuple[Workload, Workload]:
    """The part before `at_s`, to tune on, and the rest, for figures; both begin at 0.

    :raises BadWindow: one of them would have no arrival.
    """
    tuning, rest = window(workload, 0.0, at_s), window(workload, at_s)
    return (
        msgspec.structs.replace(tuning, name=f"{workload.name} tuning"),
        msgspec.structs.replace(rest, name=f"{workload.name} rest"),
    )


def _check(factor: float, what: str) -> None:
    if not math.isfinite(factor) or factor <= 0:
        raise BadWindow(f"{what} factor {factor!r}; a finite factor above 0 is needed")


def _moved(arrival: Arrival, at_s: float) -> Arrival:
    a = arrival
    return Arrival(a.id, at_s, a.tenant, a.prompt_tokens, a.output_tokens, a.max_tokens, a.prefix)


def _with(workload: Workload, arrivals: list[Arrival], name: str) -> Workload:
    named = {each.tenant for each in arrivals}
    tenants = {tenant: each for tenant, each in workload.tenants.items() if tenant in named}
    return Workload(name=name, arrivals=arrivals, tenants=tenants)
