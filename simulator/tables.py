"""A run, or several beside each other, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from simulator.judgement import Counterfactuals
from simulator.judgement_table import judged_figures, judged_table
from simulator.metrics import Group, Metrics

__all__ = ["comparison", "details"]

#: Rows of tables that may be long.
_MOST_ROWS = 12


def comparison(runs: Sequence[Metrics]) -> Table:
    """A line a run: what one looks at first."""
    table = _table("policy", "load", "offered", "admitted", "attainment of", "attainment of", "goodput", "goodput")
    _units = ("", "", "", "", "the admitted", "the offered", "req/s", "tokens/s")
    for column, unit in zip(table.columns, _units, strict=True):
        column.header = f"{column.header}\n{unit}" if unit else f"{column.header}\n"
    for name, unit in (
        ("no contract", "finished"),
        ("TTFT P50", "s"),
        ("P99", "s"),
        ("TPOT P99", "ms"),
        ("preempted", "a request"),
        ("lost", "of tokens"),
        ("busy", ""),
    ):
        table.add_column(f"{name}\n{unit}", justify="right")
    judged = any(run.counterfactual for run in runs)
    for name in ("refusals", "admissions") if judged else ():
        table.add_column(f"false\n{name}", justify="right")
    for run in runs:
        whole, free = run.contract, run.free
        table.add_row(
            Text(run.policy, style="bold"),
            f"{run.load:g}x",
            f"{whole.offered:,}",
            f"{whole.admitted:,}",
            _percent(whole.attainment_admitted),
            _percent(whole.attainment_offered),
            f"{run.goodput_rps:.2f}",
            f"{run.goodput_tokens_per_s:,.0f}",
            _percent(free.finished / free.offered if free.offered else None),
            _seconds(whole.ttft_p50_s),
            _seconds(whole.ttft_p99_s),
            _millis(whole.tpot_p99_s),
            f"{run.preemptions_per_request:.3f}",
            _percent(run.lost_share),
            _percent(run.busy_share),
            *(_false(run.counterfactual) if judged else ()),
        )
    return table


def details(run: Metrics) -> Lines:
    """Everything about one run, group by group."""
    title = Text(
        f"{run.workload} · {run.policy} · {run.workers} x {run.device} · load {run.load:g}x · seed {run.seed}",
        style="bold",
    )
    blank = Text("")
    parts: list[Text | Table] = [title, blank, _groups("", [run.contract, run.free]), blank]
    if len(run.tiers) > 1:
        parts += [_groups("class", run.tiers), blank]
    if len(run.tenants) > 1:
        parts.append(_groups("tenant", run.tenants[:_MOST_ROWS]))
        if len(run.tenants) > _MOST_ROWS:
            parts.append(Text(f"… and {len(run.tenants) - _MOST_ROWS} more tenants: all of them with --json"))
        parts.append(blank)
    if run.deciles:
        parts += [_groups("prompt tokens", run.deciles), blank]
    if run.counterfactual is not None:
        parts += [judged_table(run.counterfactual), blank]
    parts.append(_figures(run))
    return Lines(*parts)


def _groups(heading: str, groups: Sequence[Group]) -> Table:
    table = _table(
        heading, "offered", "admitted", "relegated", "refused", "shed", "finished", "met", "of admitted", "of offered"
    )
    for name in ("TTFT P50 s", "P90", "P99", "TPOT P50 ms", "P90", "P99"):
        table.add_column(name, justify="right")
    for group in groups:
        table.add_row(
            Text(group.name),
            *(f"{n:,}" for n in (group.offered, group.admitted, group.relegated, group.refused, group.shed)),
            f"{group.finished:,}",
            f"{group.met:,}",
            _percent(group.attainment_admitted),
            _percent(group.attainment_offered),
            *map(_seconds, (group.ttft_p50_s, group.ttft_p90_s, group.ttft_p99_s)),
            *map(_millis, (group.tpot_p50_s, group.tpot_p90_s, group.tpot_p99_s)),
        )
    return table


def _figures(run: Metrics) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    figures = {
        "goodput": f"{run.goodput_rps:.2f} requests/s, {run.goodput_tokens_per_s:,.0f} tokens/s in contract; "
        f"{run.free_rps:.2f} requests/s without one",
        "refusals": _refusals(run),
        "preemption": f"{run.preemptions_per_request:.3f} a request, {run.lost_tokens:,} tokens lost "
        f"({_percent(run.lost_share)}), {run.swapped_gb:.2f} GB swapped, longest gap (P99) "
        f"{_with_unit(run.longest_gap_p99_s)}",
        "between workers": f"{run.transferred_gb:.2f} GB of KV",
        "fairness": f"Jain index {_number(run.jain_index)}, largest service gap of two backlogged tenants "
        f"{'-' if run.service_gap is None else f'{run.service_gap:,.0f}'}",
        "steps": f"{_percent(run.step_coverage)} within their predicted P90, error {_percent(run.step_error)}",
        "first tokens": f"{_percent(run.ttft_coverage)} within what was foreseen, error {_percent(run.ttft_error)}",
        "device": f"{_percent(run.busy_share)} busy, {run.steps:,} steps; arrivals over {run.span_s:,.0f} s, "
        f"all over after {run.ended_s:,.0f} s",
        "speed": f"{run.wall_s:.1f} s, "
        f"{(run.contract.offered + run.free.offered) / max(run.wall_s, 1e-9):,.0f} simulated requests/s",
    }
    if run.most_met is not None:
        figures["upper bound"] = (
            f"{run.most_met:,} contracts at most ({_percent(run.attainment_bound)} of the offered), on a fluid device"
        )
    if run.counterfactual is not None:
        figures |= judged_figures(run.counterfactual)
    if not run.transferred_gb:
        del figures["between workers"]
    if run.ttft_coverage is None:
        del figures["first tokens"]
    for name, text in figures.items():
        table.add_row(Text(name, style="bold"), text)
    return table


def _false(found: Counterfactuals | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return _percent(found.false_refusals.share), _percent(found.false_admissions.share)


def _refusals(run: Metrics) -> str:
    if not run.refusals:
        return "none"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in run.refusals.items())
    return (
        f"{reasons}; told after {_with_unit(run.refusal_p99_s)} (P99) to come back in "
        f"{_with_unit(run.retry_after_p50_s)} (P50), {_with_unit(run.retry_after_p90_s)} (P90)"
    )


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _with_unit(value: float | None) -> str:
    return "-" if value is None else f"{_seconds(value)} s"


def _millis(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:,.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
