"""How closely a promised pace is kept: what the scheduler aims at, and what admission foresees of it."""

from __future__ import annotations

__all__ = ["AIMED", "LEND_STEPS", "aimed_s"]

#: A lead over the pace is lent to prompts over so many steps, as admission foresees it; and one that is behind catches
#: up in so many, since its end is not known.
LEND_STEPS = 16
#: What is aimed at, of a pace: 2 % below it. Without, a row whose steps fill its pace exactly ends a hair late.
AIMED = 0.98


def aimed_s(tpot_s: float) -> float:
    """The pace to keep, for one that was promised."""
    return tpot_s * AIMED
