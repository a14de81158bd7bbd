"""What a person sees of one worker's scheduler: who runs, who waits, and whose the memory is.

Made anew whenever somebody looks, in one walk over the rows: nothing is kept for it while nobody does.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import msgspec

from policies.order.cost import DeviceCost
from policies.rows import Place, Row

__all__ = ["CoreView", "RowView", "TierView", "spaced", "view_rows"]

#: Rows shown at most, of those that run.
MOST_ROWS = 64
#: Slacks told of the waiting rows of a tier, at most: evenly spaced ones of all, in order, the least among them.
MOST_SLACKS = 32


class RowView(msgspec.Struct, frozen=True, array_like=True):
    """A request in a slot, or preempted.

    `slack_s`: how much later its work could begin for its next promise to be kept still, on an otherwise idle device;
    None without a promise.
    """

    request: str
    tenant: str
    tier: int
    phase: str  # prefill | decode | preempted
    prompt_tokens: int
    computed: int  # tokens with KV, acknowledged
    generated: int
    slack_s: float | None


class TierView(msgspec.Struct, frozen=True, array_like=True):
    """The rows of a tier that wait for a slot. `slacks_s`: evenly spaced ones in order, of those with a promise."""

    tier: int
    waiting: int
    promised: int
    slacks_s: list[float]


class CoreView(msgspec.Struct, frozen=True, array_like=True):
    """`owners`: device blocks by tenant; one that several requests share counts for each of them."""

    rows: list[RowView]  # tightest slack first
    queue: list[TierView]  # by tier; without those that are empty
    owners: dict[str, int]
    running: dict[str, int]  # rows in slots by tenant
    waiting: dict[str, int]


def view_rows(rows: Iterable[Row], cost: DeviceCost, now: float) -> CoreView:
    """The view of all rows that are not over. O(rows), and sorts the slacks."""
    shown: list[tuple[float, Row]] = []
    slacks: dict[int, list[float]] = {}
    queue: dict[int, int] = {}
    owners: dict[str, int] = {}
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for row in rows:
        tenant = row.request.tenant
        if row.blocks:
            owners[tenant] = owners.get(tenant, 0) + len(row.blocks)
        slack = _slack_s(row, cost, now)
        if row.place is Place.waiting:
            waiting[tenant] = waiting.get(tenant, 0) + 1
            queue[row.tier] = queue.get(row.tier, 0) + 1
            if slack < inf:
                slacks.setdefault(row.tier, []).append(slack)
            if not row.preemptions:
                continue
        else:
            running[tenant] = running.get(tenant, 0) + 1
        shown.append((slack, row))
    shown.sort(key=_by_slack)
    tiers = [
        TierView(tier, queue[tier], len(slacks.get(tier, ())), spaced(sorted(slacks.get(tier, ()))))
        for tier in sorted(queue)
    ]
    return CoreView([_row_view(row, slack) for slack, row in shown[:MOST_ROWS]], tiers, owners, running, waiting)


def _by_slack(entry: tuple[float, Row]) -> tuple[float, int]:
    return entry[0], entry[1].sequence


def _slack_s(row: Row, cost: DeviceCost, now: float) -> float:
    """inf: nothing is promised of what comes next."""
    if row.first_token_at is None and not row.seen:
        if row.deadline == inf:
            return inf
        at = row.saved if row.place is Place.waiting else row.position
        return row.deadline - now - cost.alone_s(len(row.tokens) - at, at)
    return inf if row.tpot_s is None else row.lead_s(now)


def _row_view(row: Row, slack: float) -> RowView:
    request = row.request
    phase = "decode"
    if row.place is Place.waiting:
        phase = "preempted"
    elif row.place is Place.prefilling or row.computed < row.prompt_tokens:  # the last chunk may be in flight
        phase = "prefill"
    return RowView(
        request.id,
        request.tenant,
        row.tier,
        phase,
        row.prompt_tokens,
        row.computed,
        row.generated,
        None if slack == inf else slack,
    )


def spaced(values: list[float]) -> list[float]:
    """At most `MOST_SLACKS` of sorted values, evenly spaced, the first and the last among them."""
    count = len(values)
    if count <= MOST_SLACKS:
        return values
    return [values[i * (count - 1) // (MOST_SLACKS - 1)] for i in range(MOST_SLACKS)]
