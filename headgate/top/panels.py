"""The parts of the screen. Each takes what is known and a width, and gives lines that fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.live.frame import DecisionRow, Frame, Promise, StepRow, TenantRow
from headgate.top.state import Known
from headgate.top.strokes import bar, share_line, sparkline, stacked_bar

__all__ = ["decisions", "header", "queue", "running", "steps", "tenants", "workers"]

T = TypeVar("T")

_OUTCOMES = {"admitted": "green", "deferred": "yellow", "refused": "bold red"}
_SHORT_TIERS = {"priority": "prio", "default": "deflt", "flex": "flex"}
_WIDE = 110
_LEFT = 3  # columns of words, before those of numbers
_LEAST_HISTORY = 5
_LONGEST_NAME = 11


def header(known: Known, *, width: int) -> Text:
    """One line: what, where, when; whether every contract is kept; and what is wrong with the view itself."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("headgate top", "bold reverse")
    frame = known.frame
    if known.trouble:
        line.append(f"  no connection, trying again: {known.trouble}", "bold red")
    elif frame is not None:
        line.append(f"  {time.strftime('%H:%M:%S', time.localtime(frame.at))}  ")
        line.append_text(_verdict(frame))
        line.append(f"  {', '.join(frame.models)} at {frame.gateway}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _verdict(frame: Frame) -> Text:
    broken = [tenant.name for tenant in frame.tenants if tenant.kept is False]
    kept = sum(tenant.kept is True for tenant in frame.tenants)
    if broken:
        return Text(f"{len(broken)} of {len(broken) + kept} contracts broken: {', '.join(broken[:3])}", "bold red")
    if kept:
        return Text(
            f"all {kept} contracts in use are kept" if kept > 1 else "the contract in use is kept", "bold green"
        )
    return Text("no contract was judged in the last 5 min", "dim")


def tenants(known: Known, *, width: int, height: int) -> RenderableType:
    """Contract against attained, a tenant a line: those with a broken contract first, then the busiest."""
    rows = sorted(known.frame.tenants, key=_by_need) if known.frame is not None else []
    if not rows:
        return Text("no tenants yet: `headgate tenants create NAME` makes one", "dim")
    is_wide = width >= _WIDE
    headings = ["", "tenant", "tier", "kept/aim", "ttft p95/ms", "tpot p95/ms", "run", "wait"]
    headings += ["admitted", "deferred", "share", "refused"] if is_wide else ["refused"]
    fits = len(rows) <= height - 1
    shown = rows if fits else rows[: max(0, height - 2)]
    lines = [_tenant_cells(tenant, is_wide=is_wide) for tenant in shown]
    columns = zip(headings, *lines, strict=True)
    history = width - sum(max(cell_len(str(cell)) for cell in column) + 1 for column in columns)
    table = _table()
    for at, heading in enumerate(headings):
        table.add_column(heading, justify="left" if at < _LEFT else "right", no_wrap=True)
    if history >= _LEAST_HISTORY:
        table.add_column("5 min", no_wrap=True)
    for tenant, cells in zip(shown, lines, strict=True):
        line = share_line(tenant.history, width=history, aim=tenant.contract.attainment)
        table.add_row(*cells, *([line] if history >= _LEAST_HISTORY else []))
    return table if fits else Group(table, Text(f"… and {len(rows) - len(shown)} more", "dim"))


def _by_need(tenant: TenantRow) -> tuple[bool, int, str]:
    return tenant.kept is not False, -(tenant.admitted + sum(tenant.refused.values())), tenant.name


def _tenant_cells(tenant: TenantRow, *, is_wide: bool) -> list[str | Text]:
    contract = tenant.contract
    shares = [promise.share for promise in (tenant.ttft, tenant.tpot) if promise.share is not None]
    mark, style = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("·", "dim")}[tenant.kept]
    has_contract = contract.ttft_ms is not None or contract.tpot_ms is not None
    attained = f"{100 * min(shares):.1f}" if shares else "-"
    refused = sum(tenant.refused.values())
    cells: list[str | Text] = [
        Text(mark, style),
        tenant.name if is_wide or len(tenant.name) <= _LONGEST_NAME else tenant.name[: _LONGEST_NAME - 1] + "…",
        tenant.tier if is_wide else _SHORT_TIERS.get(tenant.tier, tenant.tier),
        Text(f"{attained}/{100 * contract.attainment:.4g}%" if has_contract else "-", style),
        _against(tenant.ttft, contract.ttft_ms, more=contract.ttft_per_1k_ms > 0),
        _against(tenant.tpot, contract.tpot_ms),
        str(tenant.running),
        str(tenant.waiting),
    ]
    if is_wide:
        share = "-" if tenant.service_share is None else f"{100 * tenant.service_share:.0f}%"
        cells += [str(tenant.admitted), str(tenant.deferred), share]
    return [*cells, Text(str(refused), "red" if refused else "dim")]


def _against(promise: Promise, promised_ms: float | None, *, more: bool = False) -> Text:
    """95th percentile against what is promised (`+`: and more for long prompts)."""
    measured = "-" if promise.p95_ms is None else _milliseconds(promise.p95_ms)
    aim = "-" if promised_ms is None else _milliseconds(promised_ms) + ("+" if more else "")
    return Text(f"{measured}/{aim}", "" if promised_ms is not None else "dim")


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def decisions(known: Known, *, width: int, height: int) -> RenderableType:
    """The newest first, a line each, with reason and numbers."""
    lines = [_decision(row, width=width) for row in _first(tuple(reversed(known.decisions)), height)]
    return Group(*lines) if lines else Text("no decision yet", "dim")


def _decision(row: DecisionRow, *, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(time.strftime("%H:%M:%S ", time.localtime(row.at)), "dim")
    line.append(row.outcome.ljust(9), _OUTCOMES.get(row.outcome, ""))
    line.append(f"{row.tenant} ", "bold")
    if row.outcome == "refused":
        line.append(f"{row.reason}: {row.message}" if width >= _WIDE else _briefly(row))
        if row.retry_after_ms is not None:
            line.append(f"; retry in {row.retry_after_ms / 1000:.1f} s")
    elif row.outcome == "deferred":
        line.append(f"{row.reason}: {row.message}" if width >= _WIDE else row.reason)
        if width < _WIDE and row.predicted_ttft_ms is not None:
            line.append(f", foreseen in {row.predicted_ttft_ms / 1000:.1f} s")
    else:
        if row.reason:
            line.append(f"{row.reason} ")
        if row.predicted_ttft_ms is not None:
            line.append(f"ttft {_milliseconds(row.predicted_ttft_ms)} ms foreseen")
            if row.deadline_ms is not None:
                line.append(f" of {_milliseconds(row.deadline_ms)}")
        if row.deferred_ms:
            line.append(f", after {row.deferred_ms / 1000:.1f} s deferred")
    line.append(f"  ({row.prompt_tokens}+{row.max_tokens} tokens)", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _briefly(row: DecisionRow) -> str:
    """A refusal by its reason and numbers: for its sentence there is no room."""
    if row.measured is None or row.threshold is None or row.measured == row.threshold == 0:
        return row.reason
    return f"{row.reason} {row.measured:.4g} > {row.threshold:.4g}"


def steps(known: Known, *, width: int, height: int) -> RenderableType:
    """The last steps, one a character: prompt tokens, output tokens, time; below them single ones as bars."""
    kept = known.steps
    if not kept:
        return Text("no step yet", "dim")
    graph = max(10, width - 26)
    seen = kept[-graph:]
    last = seen[-1]
    lines: list[RenderableType] = [
        _step_line("prefill", [s.prefill_tokens for s in seen], f"{last.prefill_tokens} tokens", graph, "cyan"),
        _step_line("decode", [s.decode_tokens for s in seen], f"{last.decode_tokens} tokens", graph, "blue"),
        _step_line(
            "time", [s.actual_ms for s in seen], f"{last.actual_ms:.1f} ms of {last.predicted_ms:.1f}", graph, "magenta"
        ),
    ]
    most = max(s.prefill_tokens + s.decode_tokens for s in seen)
    single = reversed(seen[-(height - len(lines)) :]) if height > len(lines) else ()
    return Group(*lines, *(_step_bar(step, most, width) for step in single))


def _step_line(name: str, values: Sequence[float], last: str, width: int, style: str) -> Text:
    line = Text(name.ljust(8), no_wrap=True)
    line.append(sparkline(values, width=width, most=max(values)).ljust(width), style)
    line.append(f" {last}")
    return line


def _step_bar(step: StepRow, most: float, width: int) -> Text:
    line = Text(no_wrap=True)
    line.append(f"{step.worker[:6]:<6} {step.number:>6} ", "dim")
    parts = [(float(step.prefill_tokens), "cyan"), (float(step.decode_tokens), "blue")]
    line.append_text(stacked_bar(parts, width=max(8, width - 44), most=most))
    line.append(f" {step.prefill_tokens}+{step.decode_tokens} tokens, {step.actual_ms:.1f} ms")
    line.truncate(width, overflow="ellipsis")
    return line


def workers(known: Known, *, width: int, height: int) -> RenderableType:
    """Workers with their KV, a line each; where there is room, whose the blocks are."""
    if known.frame is None:
        return Text("")
    memory = {(row.model, row.worker): row for row in known.frame.kv}
    table = _table()
    for name in ("worker", "state", "epoch", "beat ms", "steps/s", "rows"):
        table.add_column(name, justify="left" if name in ("worker", "state") else "right")
    gauge = 10 if width < _WIDE else 20
    table.add_column("KV used", width=gauge)
    table.add_column("blocks", overflow="ellipsis")
    rows = known.frame.workers
    for row in _first(rows, height - 1):
        kv = memory.get((row.model or "", row.worker))
        used, free = (kv.states.get("used", 0), kv.states.get("free", 0)) if kv is not None else (0, 0)
        share = used / (used + free) if used + free else 0.0
        owners = sorted(kv.owners.items(), key=lambda item: -item[1]) if kv is not None else []
        told = f"{100 * share:.0f}% of {used + free}"
        told += "".join(f" {name} {count}" for name, count in owners[:4])
        table.add_row(
            row.worker,
            Text(row.state or "-", "green" if row.state == "ready" else "bold red"),
            _or_dash(row.epoch),
            _or_dash(row.heartbeat_age_ms, ".0f"),
            _or_dash(row.steps_per_s, ".1f"),
            f"{_or_dash(row.rows)}/{_or_dash(row.slots)}",
            Text(bar(share, width=gauge), "red" if share > 0.9 else "green"),
            told if kv is not None else "-",
        )
    return table if rows else Text("no worker is heard", "bold red")


def queue(known: Known, *, width: int) -> Text:
    """One line: who waits, by tier, with the slack of the tightest."""
    line = Text(no_wrap=True, overflow="ellipsis")
    rows = known.frame.queue if known.frame is not None else []
    several = known.frame is not None and len(known.frame.models) > 1
    for row in rows:
        line.append(f"{row.model + ' ' if several else ''}{row.tier} ", "bold")
        line.append(f"{row.waiting} waiting")
        if row.slack_ms.min is not None:
            late = row.slack_ms.min < 0
            line.append(f" (slack {_milliseconds(row.slack_ms.min)} ms)", "red" if late else "green")
        line.append("   ")
    if not rows:
        line.append("nobody waits", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def running(known: Known, *, width: int, height: int) -> RenderableType:
    """Requests in slots, the tightest slack first."""
    table = _table()
    for name in ("request", "tenant", "tier", "phase"):
        table.add_column(name)
    for name in ("prompt", "computed", "out", "slack ms"):
        table.add_column(name, justify="right")
    rows = known.frame.running if known.frame is not None else []
    for row in _first(rows, height - 1):
        slack = row.slack_ms
        table.add_row(
            row.request if width >= 2 * _WIDE else f"…{row.request[-10:]}",
            row.tenant,
            row.tier,
            Text(row.phase, "yellow" if row.phase == "preempted" else ""),
            str(row.prompt_tokens),
            str(row.computed),
            str(row.generated),
            Text("-" if slack is None else _milliseconds(slack), "red" if slack is not None and slack < 0 else ""),
        )
    return table if rows else Text("nothing runs", "dim")


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)


def _first(rows: Sequence[T], count: int) -> Sequence[T]:
    return rows[: max(0, count)]


def _or_dash(value: float | None, form: str = "d") -> str:
    return "-" if value is None else format(value, form)
