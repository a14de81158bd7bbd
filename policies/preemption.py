"""Who gives way: the order of protection, and the sets of victims.

A victim is chosen so that progress is certain: running rows have a fixed order, and only a row that stands behind the
one in need gives way, so the first of them always gets on. After `max_preemptions` a row is immune: it starts again
only when its worst case fits beside that of all other immune rows, so that none of them ever needs another's blocks.
With `max_preemptions = 0` that is Orca's rule: nothing is ever preempted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from policies.rows import Row

__all__ = ["Standing", "choose_set", "standing"]

Standing = tuple[int, bool, int]


def standing(row: Row) -> Standing:
    """The order in which running rows are protected, the last gives way first: tier, a promised pace, arrival."""
    return (row.tier, row.tpot_s is None, row.sequence)


def choose_set(
    rows: Iterable[Row],
    *,
    tier: int,
    slots: int,
    blocks: int,
    freed_by: dict[Row, int],
    max_preemptions: int,
    standing: Callable[[Row], tuple[float, ...]] = standing,
) -> list[Row]:
    """The rows that give way to a waiting one of tier `tier`: all of them, or none if they would not be enough.

    Only rows of a strictly lower class are looked at, the last in `standing` first. `slots` and `blocks` are what is
    missing, `freed_by` what each row would free. Rows whose release turns out not to be needed are spared.
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
