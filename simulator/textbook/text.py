"""A schedule as text: a character a step, and a line of figures a request."""

from __future__ import annotations

from statistics import fmean

from simulator.textbook.workload import Schedule

__all__ = ["LEGEND", "as_text"]

LEGEND = "P prefill   d decode   . waiting   # stalled by the prefill of another   x KV on its way"
_COLUMNS = ("arrive", "start", "prefill_end", "first_decode", "finish", "queue", "ttft", "e2e", "holes")


def as_text(schedule: Schedule) -> str:
    """The chart and the table under it, without a trailing newline."""
    width = max(4, *(len(name) for name in schedule.rows)) + 2
    cell = max(2, len(str(max(len(row) for row in schedule.rows.values()) - 1))) + 1
    columns = max(len(row) for row in schedule.rows.values())
    lines = ["step".ljust(width) + "".join(f"{number:>{cell}}" for number in range(columns))]
    lines += [
        (name.ljust(width) + "".join(f"{mark:>{cell}}" for mark in row)).rstrip() for name, row in schedule.rows.items()
    ]
    lines += ["", "".ljust(width) + "  ".join(_COLUMNS)]
    for name, served in schedule.req.items():
        if served is None:
            lines.append(f"{name.ljust(width)}never starts")
            continue
        values = (getattr(served, column) for column in _COLUMNS)
        figures = ("-" if value is None else str(value) for value in values)
        lines.append(
            name.ljust(width)
            + "  ".join(value.rjust(len(column)) for column, value in zip(_COLUMNS, figures, strict=True))
        )
    return "\n".join([*lines, "", _summary(schedule)])


def _summary(schedule: Schedule) -> str:
    served = [one for one in schedule.req.values() if one is not None]
    if not served:
        return "nobody is served"
    return (
        f"over after {schedule.makespan} steps, mean TTFT {fmean(one.ttft for one in served):.2f}, "
        f"mean end to end {fmean(one.e2e for one in served):.2f}, slots used {schedule.useful_share:.1%}"
    )
