"""Figures of merit against load, a line a policy, with the interval over seeds as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from simulator.plots.style import PALETTE, dress, figure, legend_below

__all__ = ["Curve", "Panel", "load_curves"]

_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """One policy: at each load the mean and its interval."""

    loads: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Panel(NamedTuple):
    """One figure of merit, for several policies. `share`: it is one, shown in percent from 0 to 100."""

    title: str
    unit: str
    curves: Mapping[str, Curve]
    share: bool = False
    goal: float | None = None  # drawn as a thin line


def load_curves(panels: Sequence[Panel], *, title: str = "", x: str = "load (x capacity)") -> Figure:
    """Panels beside each other. The first policy is ours: it is drawn thicker, and on top."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    page, grid = figure(3.6 + 0.2 * (-(-len(names) // 5)), columns=len(panels))
    handles: dict[str, Artist] = {}
    for axes, panel in zip(grid, panels, strict=True):
        dress(axes, title=panel.title, x=x, y=panel.unit)
        for number, name in enumerate(names):
            if (curve := panel.curves.get(name)) is not None:
                handles.setdefault(name, _draw(axes, curve, number))
        _scale(axes, sorted({load for curve in panel.curves.values() for load in curve.loads}))
        if panel.share:
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.set_ylim(bottom=0)
        if panel.goal is not None:
            axes.axhline(panel.goal, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if title:
        page.suptitle(title, fontsize=11, x=0.01, ha="left")
    legend_below(page, list(handles.values()), list(handles))
    return page


def _draw(axes: Axes, curve: Curve, number: int) -> Artist:
    colour = PALETTE[number % len(PALETTE)]
    ours = number == 0
    axes.fill_between(curve.loads, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    (line,) = axes.plot(
        curve.loads,
        curve.mean,
        color=colour,
        linestyle=_DASHES[number // len(PALETTE) % len(_DASHES)],
        linewidth=2.4 if ours else 1.3,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5 if ours else 3.8,
        zorder=5 if ours else 3,
    )
    return line


def _scale(axes: Axes, loads: Sequence[float]) -> None:
    if loads and loads[0] > 0 and loads[-1] / loads[0] > 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    # Labels of neighbours that would touch are left out.
    shown: list[float] = []
    for load in loads:
        if not shown or load / shown[-1] > 1.22:
            shown.append(load)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.set_xticks(shown, [f"{load:g}" for load in shown])
