"""*Scheduler*: what is in the batch, does it run as foreseen, and who waits for it?"""

from __future__ import annotations

from typing import Any

from observability.dashboards.panels import Panel, Query, Variable, dashboard, quantiles, row, state, timeseries

__all__ = ["scheduler"]

_MODEL = 'model=~"$model"'


def scheduler() -> dict[str, Any]:
    return dashboard(
        "headgate-scheduler",
        "Headgate / Scheduler",
        "What is in the batch, does it run as foreseen, and who waits for it?",
        *_steps(),
        *_queue(),
        *_memory(),
        variables=[Variable("model", "headgate_workers_attached")],
        tags=["scheduler"],
    )


def _steps() -> tuple[Panel, ...]:
    steps = f"sum(rate(headgate_steps_total{{{_MODEL}}}[$__rate_interval]))"
    tokens = f"sum by (phase) (rate(headgate_step_tokens_total{{{_MODEL}}}[$__rate_interval]))"
    return (
        row("Steps"),
        timeseries(
            "Tokens computed",
            "By phase: prefill tokens are of prompts, decode tokens are outputs.",
            Query(tokens, "{{phase}}"),
            unit="short",
            stacked=True,
        ),
        timeseries(
            "Composition of a step",
            "Tokens of an average step. Prefill shares steps with decode, and makes them longer for everybody in them.",
            Query(f"{tokens} / on () group_left () clamp_min({steps}, 0.001)", "{{phase}}"),
            unit="short",
            stacked=True,
        ),
        timeseries(
            "Requests in a step",
            "Rows that run together.",
            *quantiles("headgate_step_rows", 0.5, 0.95, where=_MODEL),
            unit="none",
        ),
        timeseries(
            "Chunks of prompts",
            "Tokens of a chunk. They shrink where the pace of those who decode leaves little room. 0: no prompt came.",
            *quantiles("headgate_chunk_tokens", 0.5, 0.95, where=_MODEL, or_zero=True),
            unit="short",
        ),
        timeseries(
            "Step time, predicted and actual",
            "On the device.",
            *[
                Query(query.expr, f"{query.legend} predicted by the model")
                for query in quantiles("headgate_step_predicted_seconds", 0.5, 0.99, where=_MODEL)
            ],
            *[Query(query.expr, f"{query.legend} actual") for query in quantiles("headgate_step_seconds", 0.5, 0.99)],
            unit="s",
        ),
        timeseries(
            "Actual over predicted step time",
            "1: as foreseen. What admission promises rests on it; the alert HeadgatePredictorDrift fires when the mean "
            "is 25 % off for ten minutes.",
            *quantiles("headgate_step_prediction_ratio", 0.1, 0.5, 0.95, where=_MODEL),
            Query(f"model:headgate_step_prediction:ratio_rate10m{{{_MODEL}}}", "mean of ten minutes, {{model}}"),
            unit="none",
            limits=(1.25, 1.5),
        ),
    )


def _queue() -> tuple[Panel, ...]:
    by_tier = "sum by (tier) ({metric}{{" + _MODEL + "}})"
    least = "min by (tier) ({metric}{{" + _MODEL + "}})"
    return (
        row("Queue"),
        timeseries(
            "Running, by tier",
            "Requests in slots.",
            Query(by_tier.format(metric="headgate_requests_running"), "{{tier}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Waiting, by tier",
            "Requests that were admitted and have no slot, preempted ones too.",
            Query(by_tier.format(metric="headgate_requests_waiting"), "{{tier}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Slack of the queue",
            "How much later the most urgent waiting request, and half of them, could start and keep their promise. "
            "Below 0 it is too late. No line: nobody waits with a promise.",
            Query(least.format(metric="headgate_queue_slack_min_seconds"), "{{tier}} least"),
            Query(least.format(metric="headgate_queue_slack_median_seconds"), "{{tier}} median"),
            unit="s",
            least=None,
            limits=(0,),
            falling=True,
        ),
        timeseries(
            "Wait for the first step",
            "From submission to the first step, of the admitted.",
            *quantiles("headgate_queue_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
        timeseries(
            "Preemptions, by kind",
            "swap: its KV went to the host; tail: it keeps the head; recompute: it keeps nothing.",
            Query("sum by (kind) (rate(headgate_preemptions_total[$__rate_interval]))", "{{kind}}"),
            Query("sum(rate(headgate_shed_total[$__rate_interval]))", "given up before it ran"),
            unit="ops",
        ),
        state(
            "Overload",
            "What is given up, as admission tells the scheduler.",
            Query(f"max by (model) (headgate_overload_level{{{_MODEL}}})", "{{model}}"),
            {
                0: ("calm", "green"),
                1: ("shrink", "yellow"),
                2: ("defer", "orange"),
                3: ("relegate", "orange"),
                4: ("refuse", "red"),
                5: ("offload", "dark-red"),
            },
        ),
    )


def _memory() -> tuple[Panel, ...]:
    hits = "sum(rate(headgate_prefix_hit_tokens_total[$__rate_interval]))"
    prefill = 'sum(rate(headgate_step_tokens_total{phase="prefill"}[$__rate_interval]))'
    return (
        row("KV memory"),
        timeseries(
            "KV blocks",
            "used and free are all of the device's; cached are those of either in the prefix index; host holds "
            "preempted requests.",
            Query(f"sum by (state) (headgate_kv_blocks{{{_MODEL}}})", "{{state}}"),
            unit="none",
        ),
        timeseries(
            "KV used, by worker",
            "Share of the blocks that requests hold. The alert HeadgateKvSaturated fires at 95 %.",
            Query(f"worker:headgate_kv_used:ratio{{{_MODEL}}}", "{{worker}}"),
            unit="percentunit",
            most=1,
            limits=(0.85, 0.95),
        ),
        timeseries(
            "Prompts found in the cache",
            "Share of prompt tokens that need no computing, since their prefix is resident.",
            Query(f"{hits} / clamp_min({hits} + {prefill}, 0.001)", "hits"),
            unit="percentunit",
            most=1,
        ),
        timeseries(
            "Blocks copied to the host",
            "For preempted requests. The copies share the bus with everything else.",
            Query("sum(rate(headgate_swapped_blocks_total[$__rate_interval]))", "blocks"),
            unit="ops",
        ),
        timeseries(
            "Computed tokens given up",
            "By preemption; they are computed again, unless the prefix cache still has them.",
            Query("sum(rate(headgate_preempt_lost_tokens_total[$__rate_interval]))", "tokens"),
            unit="short",
        ),
    )
