"""How fairly the tenants of a run were served.

Service is weighted as in VTC (Sheng et al., OSDI 2024): 1 for a prompt token that was computed, 2 for an output. It is
spread evenly over the time from a request's first slot to its first token, and from there to its end: an outcome tells
no more, and over windows of many steps no more is needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

from simulator.records import Outcome

__all__ = ["jain_index", "largest_service_gap", "service_over_time"]

PROMPT_COST = 1.0
OUTPUT_COST = 2.0
#: Tenants that are compared pairwise: those that ask for the most.
_MOST_TENANTS = 64


def jain_index(outcomes: Sequence[Outcome], weights: Mapping[str, float]) -> float | None:
    """Jain's index over tenants of what was met, against a fair share of it: 1 is fair, 1/n is one tenant for all.

    The tokens of all requests that were met are handed out anew by weight, nobody getting more than it asked for
    (water filling, max-min fair); a tenant's figure is what it really got of that. None without two tenants that asked,
    or if nothing was met.
    """
    demand: dict[str, float] = defaultdict(float)
    met: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        tokens = outcome.prompt_tokens + outcome.output_tokens
        demand[outcome.tenant] += tokens
        if outcome.met:
            met[outcome.tenant] += tokens
    total = sum(met.values())
    if len(demand) < 2 or not total:
        return None
    shares = _water_fill(demand, weights, total)
    figures = [met[tenant] / share for tenant, share in shares.items() if share > 0]
    return sum(figures) ** 2 / (len(figures) * sum(figure * figure for figure in figures))


def _water_fill(demand: Mapping[str, float], weights: Mapping[str, float], total: float) -> dict[str, float]:
    shares: dict[str, float] = {}
    left, weight_left = total, sum(weights.get(tenant, 1.0) for tenant in demand)
    for tenant in sorted(demand, key=lambda name: demand[name] / weights.get(name, 1.0)):
        weight = weights.get(tenant, 1.0)
        shares[tenant] = min(demand[tenant], left * weight / weight_left)
        left -= shares[tenant]
        weight_left -= weight
    return shares


def service_over_time(outcomes: Sequence[Outcome], edges: Sequence[float]) -> dict[str, list[float]]:
    """Service of each tenant up to each of `edges` (instants, ascending), not divided by weights."""
    into: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(edges) + 1))
    for outcome in outcomes:
        if outcome.scheduled_s is None or outcome.first_token_s is None:
            continue
        windows = into[outcome.tenant]
        prompt = PROMPT_COST * (outcome.prompt_tokens - outcome.cached_tokens)
        _spread(windows, edges, outcome.scheduled_s, outcome.first_token_s, prompt + OUTPUT_COST)
        if outcome.finished_s is not None and outcome.generated > 1:
            outputs = OUTPUT_COST * (outcome.generated - 1)
            _spread(windows, edges, outcome.first_token_s, outcome.finished_s, outputs)
    return {tenant: _running_sum(windows[: len(edges)]) for tenant, windows in into.items()}


def _spread(windows: list[float], edges: Sequence[float], begun_s: float, ended_s: float, amount: float) -> None:
    """Add an amount, evenly over an interval, to the windows that end at `edges`."""
    first, last = bisect_right(edges, begun_s), bisect_right(edges, ended_s)
    if first == last:
        windows[first] += amount
        return
    rate = amount / (ended_s - begun_s)
    windows[first] += rate * (edges[first] - begun_s)
    for i in range(first + 1, last):
        windows[i] += rate * (edges[i] - edges[i - 1])
    windows[last] += rate * (ended_s - edges[last - 1])


def _running_sum(values: Sequence[float]) -> list[float]:
    sums, total = [], 0.0
    for value in values:
        total += value
        sums.append(total)
    return sums


def largest_service_gap(
    outcomes: Sequence[Outcome], weights: Mapping[str, float], *, ended_s: float, windows: int = 400
) -> float | None:
    """The most by which the weighted service of two tenants of one class grew apart while both were backlogged.

    Over any run of windows (`ended_s` cut in so many) in which both always had a request waiting for its first slot,
    as VTC's theorem bounds it; in the units above. None if no two tenants ever were. Compares the 64 tenants of each
    class that ask for the most.
    """
    if ended_s <= 0:
        return None
    edges = [ended_s * (i + 1) / windows for i in range(windows)]
    largest: float | None = None
    for tier in {outcome.tier for outcome in outcomes}:
        members = [outcome for outcome in outcomes if outcome.tier == tier]
        names = _top_tenants(members)
        if len(names) < 2:
            continue
        service = service_over_time([o for o in members if o.tenant in names], edges)
        backlog = {name: _backlogged([o for o in members if o.tenant == name], edges, ended_s) for name in names}
        lines = {name: [s / weights.get(name, 1.0) for s in service.get(name, [0.0] * windows)] for name in names}
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                both = [a and b for a, b in zip(backlog[one], backlog[other], strict=True)]
                if any(both):
                    gap = _widest(lines[one], lines[other], both)
                    largest = gap if largest is None else max(largest, gap)
    return largest


def _top_tenants(outcomes: Sequence[Outcome]) -> list[str]:
    asked: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        asked[outcome.tenant] += outcome.prompt_tokens + outcome.output_tokens
    return sorted(asked, key=lambda name: (-asked[name], name))[:_MOST_TENANTS]


def _backlogged(outcomes: Sequence[Outcome], edges: Sequence[float], ended_s: float) -> list[bool]:
    """For each window, whether a request was waiting through all of it."""
    waits: list[list[float]] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.arrived_s):
        until_s = outcome.scheduled_s
        if until_s is None:
            until_s = outcome.decided_s if outcome.decision in ("refused", "shed") else ended_s
        if until_s is None or until_s <= outcome.arrived_s:
            continue
        if waits and outcome.arrived_s <= waits[-1][1]:
            waits[-1][1] = max(waits[-1][1], until_s)
        else:
            waits.append([outcome.arrived_s, until_s])
    covered, at = [], 0
    for begun_s, end_s in pairwise([0.0, *edges]):
        while at < len(waits) and waits[at][1] < end_s:
            at += 1
        covered.append(at < len(waits) and waits[at][0] <= begun_s)
    return covered


def _widest(one: Sequence[float], other: Sequence[float], both: Sequence[bool]) -> float:
    """The largest change of `one - other` over any run of windows that are all in `both`."""
    widest, low, high, inside = 0.0, 0.0, 0.0, False
    before = 0.0
    for a, b, shared in zip(one, other, both, strict=True):
        after = a - b
        if shared:
            if not inside:
                low = high = before
            low, high = min(low, after), max(high, after)
            widest = max(widest, after - low, high - after)
        inside, before = shared, after
    return widest
