"""Who was served how much and when, from the records of steps: exact to the step, where outcomes tell only ends.

Two currencies: VTC's tokens (Sheng et al., OSDI 2024), 1 for a prompt token that was computed and 2 for an output; and
device-seconds by the device's own step times, as `policies.order.cost` prices them: a prompt as its part of full steps,
a decode as one of the rows of its step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from simulator.fairness import OUTPUT_COST, PROMPT_COST
from simulator.records import Device, Outcome, StepRecord

__all__ = ["Ledger", "in_device_seconds", "in_tokens", "longest_backlog", "service", "widest_gap"]

#: (instant, service of each tenant up to then), in order.
Ledger = list[tuple[float, dict[str, float]]]
#: (a prefill or not, tokens, rows that decode in the step) → what it counts.
Price = Callable[[bool, int, int], float]


def in_tokens(prefill: bool, count: int, rows: int) -> float:
    """VTC's own weights."""
    return PROMPT_COST * count if prefill else OUTPUT_COST * count


def in_device_seconds(device: Device) -> Price:
    """By the step times of a device; attention, which grows with the context, left out."""
    c = device.step_time
    full = device.tokens_per_step
    per_token_s = (max(c.floor_s, c.base_s + c.per_token_s * full) + c.per_row_s) / full

    def price(prefill: bool, count: int, rows: int) -> float:
        if prefill:
            return per_token_s * count
        return count * (max(c.floor_s, c.base_s + c.per_token_s * rows) / rows + c.per_row_s)

    return price


def service(steps: Iterable[StepRecord], tenants: Mapping[str, str], price: Price) -> Ledger:
    """Service after every step. `tenants` by request."""
    total: dict[str, float] = defaultdict(float)
    ledger: Ledger = []
    for step in sorted(steps, key=lambda step: step.ended_s):
        rows = len(step.prefill) - sum(step.prefill)
        for request, count, prefill in zip(step.requests, step.counts, step.prefill, strict=True):
            total[tenants[request]] += price(prefill, count, rows)
        ledger.append((step.ended_s, dict(total)))
    return ledger


def longest_backlog(outcomes: Sequence[Outcome], tenants: Sequence[str]) -> tuple[float, float]:
    """The longest time in which each of these tenants always had a request waiting for its first slot; (0, 0): none."""
    edges: list[tuple[float, int, str]] = []
    for outcome in outcomes:
        if outcome.tenant in tenants and outcome.scheduled_s is not None and outcome.scheduled_s > outcome.arrived_s:
            edges += [(outcome.arrived_s, 1, outcome.tenant), (outcome.scheduled_s, -1, outcome.tenant)]
    waiting = dict.fromkeys(tenants, 0)
    best, begun = (0.0, 0.0), None
    for instant, change, tenant in sorted(edges, key=lambda edge: (edge[0], -edge[1])):
        waiting[tenant] += change
        if all(waiting.values()):
            begun = instant if begun is None else begun
        elif begun is not None:
            best = max(best, (begun, instant), key=lambda span: span[1] - span[0])
            begun = None
    return best


def widest_gap(
    ledger: Ledger, one: str, other: str, *, from_s: float, until_s: float, weights: Mapping[str, float] | None = None
) -> float:
    """The most by which the weighted service of two tenants grew apart, over any part of that time."""
    weights = weights or {}
    low = high = None
    widest = 0.0
    for instant, total in ledger:
        if not from_s <= instant <= until_s:
            continue
        ahead = total.get(one, 0.0) / weights.get(one, 1.0) - total.get(other, 0.0) / weights.get(other, 1.0)
        low = ahead if low is None else min(low, ahead)
        high = ahead if high is None else max(high, ahead)
        widest = max(widest, ahead - low, high - ahead)
    return widest
