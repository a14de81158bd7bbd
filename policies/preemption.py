"""Who gives way, and how: victims, and swap against recompute.

A victim is chosen so that progress is certain: running rows have a fixed order, and only a row that stands behind the
one in need gives way, so the first of them always gets on. After `max_preemptions` a row is immune: it starts again
only when its worst case fits beside that of all other immune rows, so that none of them ever needs another's blocks.
With `max_preemptions = 0` that is Orca's rule: nothing is ever preempted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from policies.chunks import StepTime
from policies.rows import Row

__all__ = ["Kind", "Standing", "choose_kind", "choose_set", "standing", "worst"]

Kind = Literal["swap", "recompute"]
Standing = tuple[int, bool, int]


def standing(row: Row) -> Standing:
    """The order in which running rows are protected, the last gives way first: tier, a promised pace, arrival."""
    return (row.tier, row.tpot_s is None, row.sequence)


def worst(rows: Iterable[Row], *, max_preemptions: int) -> Row | None:
    """The first to give way; None if all are immune."""
    return max((row for row in rows if row.preemptions < max_preemptions), key=standing, default=None)


def choose_set(
    rows: Iterable[Row], *, tier: int, slots: int, blocks: int, freed_by: dict[Row, int], max_preemptions: int
) -> list[Row]:
    """The rows that give way to a waiting one of tier `tier`: all of them, or none if they would not be enough.

    Only rows of a strictly lower class are looked at. `slots` and `blocks` are what is missing, `freed_by` what each
    row would free. Rows whose release turns out not to be needed are spared.
    """
    chosen: list[Row] = []
    candidates = sorted(
        (row for row in rows if row.tier > tier and row.preemptions < max_preemptions), key=standing, reverse=True
    )
    for row in candidates:
        if slots <= 0 and blocks <= 0:
            break
        chosen.append(row)
        slots -= 1
        blocks -= freed_by[row]
    if slots > 0 or blocks > 0:
        return []
    for row in list(chosen):
        if slots + 1 <= 0 and blocks + freed_by[row] <= 0:
            chosen.remove(row)
            slots += 1
            blocks += freed_by[row]
    return chosen


def choose_kind(
    *,
    mode: str,
    tokens: int,
    resident: int,
    blocks: int,
    host_free: int,
    block_bytes: int,
    swap_bytes_per_s: float,
    step_time: StepTime,
) -> Kind:
    """Swap if the host has room and copying out and in takes less time than computing again what is not shared.

    `tokens` have KV in `blocks` blocks, of which the first `resident` tokens are held by others too and will be there.
    Only the copy in delays the row, but the link is shared, so both ways count. Recompute is charged what a step with
    these tokens takes over one that decodes: what shares a step with others shares its floor.
    """
    if mode == "recompute" or blocks > host_free or not tokens:
        return "recompute"
    if mode == "swap":
        return "swap"
    if swap_bytes_per_s <= 0:
        return "recompute"
    swap_s = 2 * blocks * block_bytes / swap_bytes_per_s
    lost = tokens - resident
    recompute_s = step_time.predict(lost, lost * (resident + lost / 2), 0, 1) - step_time.predict(1, 0, tokens, 1)
    return "swap" if swap_s < recompute_s else "recompute"
