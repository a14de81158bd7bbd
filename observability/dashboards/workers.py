"""*Workers*: is every device there, busy, and as fast as the others?"""

from __future__ import annotations

from typing import Any

from observability.dashboards.panels import Panel, Query, Variable, dashboard, quantiles, row, stat, table, timeseries

__all__ = ["workers"]

_MINE = 'model=~"$model",worker=~"$worker"'
_WORKER = 'worker=~"$worker"'


def _slots(states: str) -> str:
    return f'sum by (worker) (headgate_worker_slots{{{_MINE},state=~"{states}"}})'


def workers() -> dict[str, Any]:
    return dashboard(
        "headgate-workers",
        "Headgate / Workers",
        "Is every device there, busy, and as fast as the others?",
        *_at_a_glance(),
        *_work(),
        *_health(),
        variables=[Variable("model", "headgate_workers_attached"), Variable("worker", "headgate_worker_slots")],
        tags=["workers"],
    )


def _at_a_glance() -> tuple[Panel, ...]:
    busy = f"sum by (worker) (rate(headgate_step_seconds_sum{{{_WORKER}}}[$__rate_interval]))"
    return (
        stat(
            "Workers",
            "Attached to a scheduler.",
            Query('sum(headgate_workers_attached{model=~"$model"})'),
            unit="none",
            limits=(1,),
            falling=True,
        ),
        stat(
            "Lost in an hour",
            "Given up by the scheduler, but for those that left in good order. Their requests went on elsewhere.",
            Query('sum(increase(headgate_workers_lost_total{cause!="goodbye"}[1h]))'),
            unit="none",
            limits=(1, 3),
        ),
        stat(
            "Busy",
            "Share of the time that devices compute, on average.",
            Query(f"avg({busy})"),
            unit="percentunit",
        ),
        stat(
            "Tokens",
            "Computed, of prompts and outputs.",
            Query(f"sum(rate(headgate_step_tokens_total{{{_MINE}}}[$__rate_interval]))"),
            unit="short",
        ),
        table(
            "Workers",
            "One line each: who is slow, full or idle?",
            {
                "Steps/s": (f"sum by (worker) (rate(headgate_steps_total{{{_MINE}}}[1m]))", "none", ()),
                "Tokens/s": (f"sum by (worker) (rate(headgate_step_tokens_total{{{_MINE}}}[1m]))", "short", ()),
                "Busy": (f"sum by (worker) (rate(headgate_step_seconds_sum{{{_WORKER}}}[1m]))", "percentunit", ()),
                "Slots used": (
                    f"{_slots('used')} / {_slots('used|free')}",
                    "percentunit",
                    (0.9, 1),
                ),
                "KV used": (
                    f"max by (worker) (worker:headgate_kv_used:ratio{{{_MINE}}})",
                    "percentunit",
                    (0.85, 0.95),
                ),
            },
            keys=("worker",),
        ).wide(24, 7),
    )


def _work() -> tuple[Panel, ...]:
    ratio = "sum by (worker) (rate(headgate_step_prediction_ratio_{of}{{" + _MINE + "}}[$__rate_interval]))"
    return (
        row("Work"),
        timeseries(
            "Steps",
            "Forward passes a second.",
            Query(f"sum by (worker) (rate(headgate_steps_total{{{_MINE}}}[$__rate_interval]))", "{{worker}}"),
            unit="ops",
        ),
        timeseries(
            "Step time",
            "On the device.",
            *quantiles("headgate_step_seconds", 0.5, 0.99, where=_WORKER, by="worker", legend="{{worker}}"),
            unit="s",
        ),
        timeseries(
            "Busy",
            "Share of the time that the device computes. The rest is idle, or waits for the next step.",
            Query(f"sum by (worker) (rate(headgate_step_seconds_sum{{{_WORKER}}}[$__rate_interval]))", "{{worker}}"),
            unit="percentunit",
            most=1,
        ),
        timeseries(
            "Tokens",
            "Computed by each worker, of prompts and outputs.",
            Query(
                f"sum by (worker, phase) (rate(headgate_step_tokens_total{{{_MINE}}}[$__rate_interval]))",
                "{{worker}} {{phase}}",
            ),
            unit="short",
            stacked=True,
        ),
        timeseries(
            "Requests in a step",
            "Rows that run together.",
            *quantiles("headgate_step_rows", 0.5, where=_MINE, by="worker", legend="{{worker}}"),
            unit="none",
        ),
        timeseries(
            "Actual over predicted step time",
            "Mean. A single worker that leaves the others is a device that is hot, or shared.",
            Query(f"{ratio.format(of='sum')} / {ratio.format(of='count')}", "{{worker}}"),
            unit="none",
            limits=(1.25, 1.5),
        ),
        timeseries(
            "Slots used",
            "Requests that run, of those that can.",
            Query(_slots("used"), "{{worker}}"),
            Query(_slots("used|free"), "{{worker}} slots"),
            unit="none",
        ),
        timeseries(
            "KV blocks used",
            "Held by requests.",
            Query(f'sum by (worker) (headgate_kv_blocks{{{_MINE},state="used"}})', "{{worker}}"),
            unit="none",
        ),
        timeseries(
            "KV blocks on the host",
            "Of preempted requests.",
            Query(f'sum by (worker) (headgate_kv_blocks{{{_MINE},state="host"}})', "{{worker}}"),
            unit="none",
        ),
    )


def _health() -> tuple[Panel, ...]:
    return (
        row("Health"),
        timeseries(
            "Given up, by cause",
            "missed: five heartbeats; epoch: it started again; stalled: no result for a minute; mismatch: it and the "
            "scheduler disagreed on a step; goodbye: it left in good order.",
            Query("sum by (cause) (increase(headgate_workers_lost_total[5m]))", "{{cause}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Age of heartbeats",
            "Since the latest of each worker; one comes every 0.2 s, and after 1 s of silence it is given up.",
            Query('max by (peer) (headgate_heartbeat_age_seconds{role="worker"})', "{{peer}}"),
            unit="s",
            limits=(0.6, 1),
        ),
        timeseries(
            "Memory of processes",
            "Resident, of every process of Headgate.",
            Query('process_resident_memory_bytes{job=~"headgate.*"}', "{{instance}} {{process}}"),
            unit="bytes",
        ),
        timeseries(
            "CPU of processes",
            "Cores, of every process of Headgate.",
            Query('rate(process_cpu_seconds_total{job=~"headgate.*"}[$__rate_interval])', "{{instance}} {{process}}"),
            unit="none",
        ),
    )
