"""How closely a promised pace is kept: what the scheduler aims at, and what admission foresees of it."""

from __future__ import annotations

__all__ = ["LEND_STEPS", "aimed_s"]

#: A lead over the pace is lent to prompts over so many steps, as admission foresees it; and one that is behind catches
#: up in so many, since its end is not known.
LEND_STEPS = 16
#: Share of a pace that is aimed below it. Without, a row whose steps fill its pace exactly ends a hair late.
_GUARD = 0.02


def aimed_s(tpot_s: float) -> float:
    """The pace to keep, for one that was promised."""
    return tpot_s * (1 - _GUARD)
