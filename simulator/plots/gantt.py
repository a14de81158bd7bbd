"""Who did what when: a row a request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simulator.plots.style import INK, MARKS, dress, figure, legend_below
from simulator.records import Outcome, StepRecord
from simulator.textbook.workload import Schedule

__all__ = ["gantt", "textbook_gantt"]

_Bar = tuple[float, float]  # begin and width
_LETTERS = {"P": "prefill", "d": "decode", ".": "waiting", "#": "stalled", "x": "transfer"}


def gantt(
    steps: Sequence[StepRecord],
    outcomes: Sequence[Outcome],
    *,
    from_s: float = 0.0,
    until_s: float | None = None,
    most_rows: int = 40,
) -> Figure:
    """The requests that arrive in a window, at most so many, on one or more workers.

    A decode is drawn as stalled for what its step took beyond a usual one without prompts. While a request with a slot
    is in no step, it is stalled too, or preempted if it ever was.
    """
    usual_s = _usual_decode_s(steps)
    shown = [o for o in outcomes if from_s <= o.arrived_s and (until_s is None or o.arrived_s < until_s)][:most_rows]
    rows = _bars(steps, shown, usual_s)
    page, (axes,) = figure(1.5 + 0.17 * len(shown))
    for number, outcome in enumerate(shown):
        for mark, bars in rows[outcome.id].items():
            axes.broken_barh(bars, (number - 0.4, 0.8), facecolors=MARKS[mark], linewidth=0)
        if outcome.decision in ("refused", "shed") and outcome.decided_s is not None:
            axes.plot(outcome.decided_s, number, marker="x", color=INK, markersize=4)
        if outcome.ttft_s is not None:
            axes.plot(outcome.arrived_s + outcome.ttft_s, number, marker="|", color=INK, markersize=6)
    axes.set_yticks(range(len(shown)), [f"{o.id} {o.tenant}"[:22] for o in shown], fontsize=6.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    if shown:
        begin = shown[0].arrived_s
        end = until_s or max((b + w for row in rows.values() for bars in row.values() for b, w in bars), default=begin)
        axes.set_xlim(begin, max(end, begin + 1e-9))
    dress(axes, title="A row a request: | is its first-token deadline, x a refusal", x="time (s)", grid="x")
    marks = [mark for mark in MARKS if any(row.get(mark) for row in rows.values())]
    legend_below(page, [Patch(color=MARKS[mark]) for mark in marks], marks)
    return page


def _usual_decode_s(steps: Sequence[StepRecord]) -> float:
    lengths = [step.ended_s - step.begun_s for step in steps if step.requests and not any(step.prefill)]
    return median(lengths) if lengths else float("inf")


def _bars(steps: Sequence[StepRecord], shown: Sequence[Outcome], usual_s: float) -> dict[str, dict[str, list[_Bar]]]:
    known = {outcome.id: outcome for outcome in shown}
    bars: dict[str, dict[str, list[_Bar]]] = {name: defaultdict(list) for name in known}
    until: dict[str, float] = {}
    for step in sorted(steps, key=lambda step: step.begun_s):
        length = step.ended_s - step.begun_s
        for name, prefill in zip(step.requests, step.prefill, strict=True):
            if name not in known:
                continue
            row = bars[name]
            if name not in until:
                _add(row["waiting"], known[name].arrived_s, step.begun_s)
            elif step.begun_s > until[name]:
                _add(row["preempted" if known[name].preemptions else "stalled"], until[name], step.begun_s)
            if prefill:
                _add(row["prefill"], step.begun_s, step.ended_s)
            else:
                stalled = length > 1.5 * usual_s
                decoded = step.begun_s + (usual_s if stalled else length)
                _add(row["decode"], step.begun_s, decoded)
                if stalled:
                    _add(row["stalled"], decoded, step.ended_s)
            until[name] = max(step.ended_s, until.get(name, 0.0))
    for name, outcome in known.items():
        if name not in until and outcome.decided_s is not None:
            _add(bars[name]["waiting"], outcome.arrived_s, outcome.decided_s)
    return bars


def _add(bars: list[_Bar], begin: float, end: float) -> None:
    """Append an interval; one that touches the last goes on with it, so that a long decode is one bar."""
    if end <= begin:
        return
    if bars and abs(bars[-1][0] + bars[-1][1] - begin) < 1e-9:
        bars[-1] = (bars[-1][0], end - bars[-1][0])
    else:
        bars.append((begin, end - begin))


def textbook_gantt(schedules: Mapping[str, Schedule]) -> Figure:
    """Step-exact schedules under each other, on one axis of steps: a panel a strategy, a letter a column."""
    size = max(len(schedule.rows) for schedule in schedules.values())
    page, grid = figure(0.55 + (0.42 + 0.19 * size) * len(schedules), rows=len(schedules), share_x=True)
    columns = max(len(row) for schedule in schedules.values() for row in schedule.rows.values())
    for axes, (title, schedule) in zip(grid, schedules.items(), strict=True):
        _draw_schedule(axes, schedule)
        dress(axes, title=f"{title}: over after {schedule.makespan} steps", grid="")
        axes.set_xlim(0, columns)
        axes.set_xticks(range(columns + 1))
        axes.tick_params(labelbottom=axes is grid[-1], length=0)
    grid[-1].set_xlabel("time (steps)", fontsize=9)
    used = {mark for schedule in schedules.values() for row in schedule.rows.values() for mark in row}
    names = [name for letter, name in _LETTERS.items() if letter in used]
    legend_below(page, [Patch(color=MARKS[name]) for name in names], names)
    return page


def _draw_schedule(axes: Axes, schedule: Schedule) -> None:
    for number, row in enumerate(schedule.rows.values()):
        for column, letter in enumerate(row):
            if letter == " ":
                continue
            name = _LETTERS[letter]
            axes.broken_barh(
                [(column, 1)], (number - 0.44, 0.88), facecolors=MARKS[name], edgecolor="white", linewidth=0.8
            )
            if letter != ".":
                ink = "white" if name in ("stalled", "prefill") else INK
                axes.text(column + 0.5, number, letter, fontsize=6.5, ha="center", va="center_baseline", color=ink)
    axes.set_yticks(range(len(schedule.rows)), list(schedule.rows))
    axes.set_ylim(len(schedule.rows) - 0.5, -0.5)
