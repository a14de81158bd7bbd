"""The state of a run over time: queue, slots, KV, what steps were made of, and who was served."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from simulator.fairness import service_over_time
from simulator.plots.style import PALETTE, QUIET, dress, figure, legend_below
from simulator.records import Outcome, StepRecord

__all__ = ["composition", "service", "state_over_time"]

_BINS = 400
_LINES = 7  # tenants with a line of their own


def state_over_time(steps: Sequence[StepRecord], *, blocks: int, workers: int = 1) -> Figure:
    """Waiting, running, and the share of the KV blocks in use, of all workers together. `blocks` of each."""
    edges = _edges(steps)
    page, grid = figure(5.0, rows=3, share_x=True)
    per_worker = [[s for s in steps if s.worker == name] for name in sorted({s.worker for s in steps})]
    panels = (
        ("Waiting for a slot", "requests", [[s.waiting for s in one] for one in per_worker], PALETTE[1], 1.0),
        ("Running", "requests", [[s.running for s in one] for one in per_worker], PALETTE[0], 1.0),
        ("KV blocks in use", "", [[s.used_blocks for s in one] for one in per_worker], PALETTE[2], blocks * workers),
    )
    times = [[s.begun_s for s in one] for one in per_worker]
    for axes, (title, unit, values, colour, whole) in zip(grid, panels, strict=True):
        line = [sum(_at(times[i], values[i], edge) for i in range(len(values))) / whole for edge in edges]
        axes.fill_between(edges, line, color=colour, alpha=0.18, linewidth=0, step="post")
        axes.step(edges, line, color=colour, linewidth=1.2, where="post")
        dress(axes, title=title, y=unit)
        axes.set_ylim(bottom=0)
        if unit:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    grid[2].set_ylim(0, 1.03)
    grid[2].yaxis.set_major_formatter(PercentFormatter(1.0))
    grid[2].set_xlabel("time (s)", fontsize=9)
    return page


def composition(steps: Sequence[StepRecord]) -> Figure:
    """Tokens of prompts and of decodes in the steps, stacked, and below how long the steps were."""
    edges = _edges(steps, least_steps=8, most=150)
    prompts, decodes = [0.0] * len(edges), [0.0] * len(edges)
    counts, longest = [0] * len(edges), [0.0] * len(edges)
    for step in steps:
        at = max(0, bisect_right(edges, step.begun_s) - 1)
        counts[at] += 1
        prompt = sum(count for count, prefill in zip(step.counts, step.prefill, strict=True) if prefill)
        prompts[at] += prompt
        decodes[at] += sum(step.counts) - prompt
        longest[at] = max(longest[at], step.ended_s - step.begun_s)
    per_step = [max(1, count) for count in counts]
    page, (upper, lower) = figure(4.2, rows=2, share_x=True)
    areas = upper.stackplot(
        edges,
        [d / n for d, n in zip(decodes, per_step, strict=True)],
        [p / n for p, n in zip(prompts, per_step, strict=True)],
        colors=["#56B4E9", "#D55E00"],
        linewidth=0,
        step="post",
    )
    dress(upper, title="What a step is made of", y="tokens a step (mean)")
    lower.step(edges, [1000 * value for value in longest], color=PALETTE[0], linewidth=1.1, where="post")
    lower.set_ylim(bottom=0)
    dress(lower, title="The longest step", x="time (s)", y="ms")
    legend_below(page, areas, ["decode", "prefill"])
    return page


def service(outcomes: Sequence[Outcome], weights: Mapping[str, float] | None = None, *, ended_s: float) -> Figure:
    """Weighted service of each tenant over time. The tenants with the most have lines of their own."""
    weights = weights or {}
    edges = [ended_s * (i + 1) / _BINS for i in range(_BINS)]
    lines = {
        tenant: [value / weights.get(tenant, 1.0) for value in values]
        for tenant, values in service_over_time(outcomes, edges).items()
    }
    ordered = sorted(lines, key=lambda tenant: -lines[tenant][-1])
    page, (axes,) = figure(4.0)
    handles, labels = [], []
    for number, tenant in enumerate(ordered):
        named = number < _LINES
        (line,) = axes.plot(
            [0.0, *edges],
            [0.0, *lines[tenant]],
            color=PALETTE[number] if named else QUIET,
            linewidth=1.6 if named else 0.6,
            alpha=1.0 if named else 0.5,
            zorder=3 if named else 2,
        )
        if number <= _LINES:
            handles.append(line)
            labels.append(tenant[:24] if named else f"{len(ordered) - _LINES} others")
    dress(axes, title="Service of tenants", x="time (s)", y="tokens (output x 2) / weight")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, ended_s)
    legend_below(page, handles, labels, columns=4)
    return page


def _edges(steps: Sequence[StepRecord], *, least_steps: int = 1, most: int = _BINS) -> list[float]:
    """Where the bins of a run begin; as many as there are pixels for at most, with so many steps each on average."""
    begin = min((step.begun_s for step in steps), default=0.0)
    end = max((step.ended_s for step in steps), default=1.0)
    bins = max(1, min(most, len(steps) // least_steps))
    return [begin + (end - begin) * i / bins for i in range(bins + 1)]


def _at(times: Sequence[float], values: Sequence[int], instant: float) -> int:
    number = bisect_right(times, instant) - 1
    return values[number] if number >= 0 else 0
