"""What counterfactual runs say, as a table for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from simulator.judgement import Counterfactuals, Judged, Share

__all__ = ["judged_figures", "judged_table", "percent_of"]


def judged_table(found: Counterfactuals) -> Table:
    """Both rates of the whole, and of its parts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("judged by forks")
    for name in ("refused", "of these false", "95 %", "admitted", "of these false", "95 %"):
        table.add_column(name, justify="right")
    whole = Judged(name="in contract", false_refusals=found.false_refusals, false_admissions=found.false_admissions)
    for judged in (whole, *found.tiers, *found.deciles):
        cells = []
        for one in (judged.false_refusals, judged.false_admissions):
            cells += [str(one.of), _percent(one.share), _interval(one)]
        table.add_row(Text(judged.name), *cells)
    return table


def judged_figures(found: Counterfactuals) -> dict[str, str]:
    """What the table has no place for, by name."""
    return {
        "false admissions": f"{percent_of(found.missed)} were not kept themselves; {percent_of(found.harmful)} were, "
        "and cost others theirs",
        "false refusals": f"{percent_of(found.impossible)} of those that were told that it was impossible; judged "
        f"{found.false_refusals.of:,} of {found.refused:,} refusals, {found.false_admissions.of:,} of "
        f"{found.admitted:,} admissions",
        "came again when told": f"{percent_of(found.retries_admitted)} were admitted, {percent_of(found.retries_met)} "
        "kept",
    }


def percent_of(one: Share) -> str:
    """A share with its interval."""
    return "-" if one.share is None else f"{_percent(one.share)} ({_interval(one)}) of {one.of:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _interval(one: Share) -> str:
    return "-" if one.low is None or one.high is None else f"{100 * one.low:.1f}-{100 * one.high:.1f}%"
