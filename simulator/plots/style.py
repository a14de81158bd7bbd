"""How every picture looks: light, quiet, and readable by the colour-blind (the palette of Okabe and Ito, 2008).

Pictures are as wide as a page of docs. No pyplot: it keeps global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["INK", "MARKS", "PALETTE", "QUIET", "dress", "figure", "legend_below", "save"]

INK = "#222222"
QUIET = "#8a8a8a"
#: In the order in which they are given out; black comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#000000")
#: What a request does at an instant. Apart in lightness too.
MARKS = {
    "prefill": "#D55E00",
    "decode": "#56B4E9",
    "waiting": "#E3E3E3",
    "stalled": "#444444",
    "preempted": "#CC79A7",
    "transfer": "#F0E442",
}
_WIDTH_IN = 8.6
_DPI = 120


def figure(height_in: float, *, rows: int = 1, columns: int = 1, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """A page-wide figure with a grid of axes, row by row."""
    page = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, facecolor="white", layout="constrained")
    grid = page.subplots(rows, columns, squeeze=False, sharex=share_x)
    return page, [axes for row in grid for axes in row]


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
    """Labels with units, thin spines, a faint grid."""
    if title:
        axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    if grid:
        axes.grid(axis=grid, color="#e6e6e6", linewidth=0.7)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_below(page: Figure, handles: Sequence[Artist], labels: Sequence[str], *, columns: int = 5) -> None:
    """One legend for all axes, under them."""
    page.legend(
        list(handles),
        list(labels),
        loc="outside lower center",
        ncols=min(columns, max(1, len(labels))),
        fontsize=8,
        frameon=False,
    )


def save(page: Figure, path: Path) -> Path:
    """Write a figure as PNG; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page.savefig(path, format="png", metadata={"Software": ""})
    return path
