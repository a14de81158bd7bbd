"""How many contracts could be kept at all, by anybody who knew everything beforehand? An upper bound.

Everything that makes it hard is taken away, and what is left is solved exactly:

- Work is fluid: each request needs so much of the device's time, which may be given in any portions, in parallel or in
  turns, on any worker; parts of requests count as such parts.
- It needs no more than its share of the fullest steps: as many tokens as fit a step share its fixed cost; outputs, that
  of steps no longer than the pace promised on average (a longer step serves more tokens; the cost a token is convex in
  the length, so unequal steps cost no less). What a request adds by itself (attention, rows) comes on top. What it may
  find of its prefix in a cache costs nothing.
- Memory is without bound, and requests without a contract are not there.
- It is met if the work of its prompt fits between its arrival and the instant that its first token is due, and all of
  its work before the latest instant that its contract allows. These two are looked at one by one, and the smaller
  count taken.
- The device's time is bounded over intervals that lie inside or outside of each other, each half as long as the next
  (of several such grids the one that bounds the most).

The sets of requests that fit are then a polymatroid (a laminar family of capacities), on which the greedy choice, the
cheapest first, is the best one (Edmonds 1970).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, floor, inf

from policies.step_time import step_time
from policies.vocabulary import Tier
from simulator.records import PREFIX_TOKENS, Arrival, Device, Workload
from simulator.requests import promised_ttft_s

__all__ = ["most_met"]

_GRIDS = 4
#: Intervals shorter than that bound nothing: windows are longer.
_SHORTEST_S = 0.25

_Job = tuple[float, float, float]  # work, from, to: seconds


def most_met(workload: Workload, device: Device, *, workers: int = 1, load: float = 1.0) -> int:
    """At least as many as any scheduler can serve in contract, if arrivals come `load` times as fast."""
    seen: set[tuple[str, int]] = set()
    prompts: list[_Job] = []
    wholes: list[_Job] = []
    for arrival in workload.arrivals:
        cached = _cacheable(arrival, workload, seen)
        contract = workload.contract(arrival)
        ttft_s = promised_ttft_s(contract, arrival.prompt_tokens)
        tpot_s = None if contract.tpot_ms is None else contract.tpot_ms / 1000
        if Tier[contract.tier] >= Tier.flex or (ttft_s is None and tpot_s is None):
            continue
        outputs = min(arrival.output_tokens, arrival.max_tokens)
        if not _possible(device, arrival.prompt_tokens, cached, outputs, ttft_s, tpot_s):
            continue
        at_s = arrival.at_s / load
        prompt_s = _prompt_s(device, arrival.prompt_tokens, cached)
        whole_s = prompt_s + _outputs_s(device, arrival.prompt_tokens, outputs, tpot_s)
        due_s = inf if ttft_s is None else at_s + ttft_s
        last_s = due_s + max(0, outputs - 1) * (inf if tpot_s is None and outputs > 1 else tpot_s or 0.0)
        prompts.append((prompt_s, at_s, due_s))
        wholes.append((whole_s, at_s, last_s))
    return floor(min(_fits(prompts, workers), _fits(wholes, workers)) + 1e-6)


def _cacheable(arrival: Arrival, workload: Workload, seen: set[tuple[str, int]]) -> int:
    """Tokens at the beginning of its prompt that have come before; it is seen from now on."""
    tenant = workload.tenants[arrival.tenant]
    names = [(tenant.group or f"tenant {tenant.name}", block) for block in arrival.prefix]
    known = 0
    while known < len(names) and names[known] in seen:
        known += 1
    seen.update(names)
    return max(0, min(known * PREFIX_TOKENS, arrival.prompt_tokens - 1))


def _possible(
    device: Device, prompt: int, cached: int, outputs: int, ttft_s: float | None, tpot_s: float | None
) -> bool:
    """On an idle worker."""
    c, most = device.step_time, device.tokens_per_step
    whole, rest = divmod(prompt - cached, most)
    alone_s = whole * step_time(c, most, 0.0, 0.0, 1) + (step_time(c, rest, 0.0, 0.0, 1) if rest else 0.0)
    alone_s += _attended_s(device, prompt, cached)
    if ttft_s is not None and alone_s > ttft_s:
        return False
    return tpot_s is None or outputs < 2 or step_time(c, 1, 0.0, prompt, 1) <= tpot_s


def _prompt_s(device: Device, prompt: int, cached: int) -> float:
    c, most = device.step_time, device.tokens_per_step
    tokens = prompt - cached
    dense_s = max(c.floor_s, c.base_s + c.per_token_s * most) / most
    return tokens * dense_s + _attended_s(device, prompt, cached) + ceil(tokens / most) * c.per_row_s


def _attended_s(device: Device, prompt: int, cached: int) -> float:
    c, tokens = device.step_time, prompt - cached
    return min(c.per_attended_s, c.per_context_s) * tokens * (cached + tokens / 2)


def _outputs_s(device: Device, prompt: int, outputs: int, tpot_s: float | None) -> float:
    """Of those after the first."""
    c, most, steps = device.step_time, float(device.tokens_per_step), outputs - 1
    if steps < 1:
        return 0.0
    if tpot_s is not None and c.per_token_s:
        most = min(most, max(1.0, (max(tpot_s, c.floor_s) - c.base_s) / c.per_token_s))
    dense_s = max(c.floor_s, c.base_s + c.per_token_s * most) / most
    return steps * (dense_s + c.per_row_s + c.per_context_s * (prompt + (steps + 1) / 2))


def _fits(jobs: Iterable[_Job], workers: int) -> float:
    """How many jobs fit into their windows; parts count as such."""
    bounded = sorted(job for job in jobs if job[2] < inf)
    free = sum(1 for job in jobs if job[2] == inf)
    if not bounded:
        return float(free)
    first, last = min(job[1] for job in bounded), max(job[2] for job in bounded)
    return free + min(_greedy(bounded, workers, first, last, grid / _GRIDS) for grid in range(_GRIDS))


def _greedy(jobs: list[_Job], workers: int, first: float, last: float, shift: float) -> float:
    """On the grid whose longest interval begins `shift` of its half before the first arrival."""
    length, levels = 2 * (last - first), 0
    origin = first - shift * (last - first)
    while length / 2 ** (levels + 1) >= _SHORTEST_S:
        levels += 1
    left: dict[tuple[int, int], float] = {}
    count = 0.0
    for work, begin, end in jobs:
        around = []
        for level in range(levels + 1):
            size = length / 2**level
            number = floor((begin - origin) / size)
            start = origin + number * size
            if end > start + size:
                break
            place = (level, number)
            if place not in left:
                left[place] = workers * (min(start + size, last) - max(start, first))
            around.append(place)
        given = min([work, *(left[place] for place in around)])
        if given <= 0:
            continue
        for place in around:
            left[place] -= given
        count += given / work
    return count
