"""*Edge*: what do clients see, and what does Headgate itself add?"""

from __future__ import annotations

from typing import Any

from observability.dashboards.panels import (
    Panel,
    Query,
    dashboard,
    late_requests,
    quantiles,
    row,
    stat,
    timeseries,
)

__all__ = ["edge"]

_LATE = (late_requests("headgate.late=true"),)


def edge() -> dict[str, Any]:
    return dashboard(
        "headgate-edge",
        "Headgate / Edge",
        "What do clients see, and what does Headgate itself add?",
        *_at_a_glance(),
        *_requests(),
        *_times(),
        tags=["edge"],
    )


def _at_a_glance() -> tuple[Panel, ...]:
    return (
        stat(
            "Requests",
            "For a generation, answered.",
            Query("sum(rate(headgate_http_responses_total[$__rate_interval]))"),
            unit="reqps",
        ),
        stat(
            "Open streams",
            "Requests under way, those that wait for a decision too.",
            Query("sum(headgate_open_streams)"),
            unit="none",
        ),
        stat(
            "Internal errors",
            "Share of the answers with status 500. The alert HeadgateServerErrors fires at 1 %.",
            Query("headgate_http_errors:ratio_rate5m"),
            unit="percentunit",
            limits=(0.001, 0.01),
        ),
        stat(
            "Resumed streams",
            "In an hour: streams that paused and went on after something behind the gateway failed.",
            Query("sum(increase(headgate_resumed_streams_total[1h]))"),
            unit="none",
        ),
        stat(
            "Gateways",
            "That serve.",
            Query('sum(headgate_up{role="gateway"})'),
            unit="none",
            limits=(1,),
            falling=True,
        ),
    )


def _requests() -> tuple[Panel, ...]:
    return (
        row("Requests"),
        timeseries(
            "By outcome",
            "stop and length are whole answers; cancelled: the client left; the others are reasons of refusals.",
            Query("sum by (outcome) (rate(headgate_requests_total[$__rate_interval]))", "{{outcome}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "By HTTP status",
            "429: a tenant's own limit. 503: our capacity. 500: a defect, or nobody could finish it.",
            Query("sum by (status) (rate(headgate_http_responses_total[$__rate_interval]))", "{{status}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "By tenant",
            "Requests that are over.",
            Query("sum by (tenant) (rate(headgate_requests_total[$__rate_interval]))", "{{tenant}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "Open streams",
            "admitted: they are served, or wait for their first token; asking: no decision yet.",
            Query("sum by (state) (headgate_open_streams)", "{{state}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Resumed streams, by why",
            "A pause for the client, and no repeated token.",
            Query("sum by (why) (increase(headgate_resumed_streams_total[5m]))", "{{why}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Time of whole requests",
            "From arrival to the last byte; long answers take long.",
            *quantiles("gen_ai_server_request_duration_seconds", 0.5, 0.95, 0.99),
            unit="s",
        ),
    )


def _times() -> tuple[Panel, ...]:
    return (
        row("Times"),
        timeseries(
            "Time to the first token",
            "Of all tenants. Points are requests: click one for its trace.",
            *quantiles("gen_ai_server_time_to_first_token_seconds", 0.5, 0.95, 0.99, exemplars=True),
            unit="s",
            links=_LATE,
        ).wide(12),
        timeseries(
            "Time of each later token",
            "Mean of each request. Points are requests: click one for its trace.",
            *quantiles("gen_ai_server_time_per_output_token_seconds", 0.5, 0.95, 0.99, exemplars=True),
            unit="s",
            links=_LATE,
        ).wide(12),
        timeseries(
            "Overhead by stage, median",
            "Time that Headgate adds itself: parse, validate and tokenise the request, ask admission, encode answers.",
            *quantiles("headgate_overhead_seconds", 0.5, by="stage", legend="{{stage}}"),
            unit="s",
        ),
        timeseries(
            "Overhead by stage, 99 %",
            "As before. All stages together stay below 5 ms on a gateway that has a core to itself.",
            *quantiles("headgate_overhead_seconds", 0.99, by="stage", legend="{{stage}}"),
            unit="s",
        ),
        timeseries(
            "Decision of admission",
            "Time that a decision takes, without waiting.",
            *quantiles("headgate_admission_seconds", 0.5, 0.99),
            unit="s",
            limits=(0.001,),
        ),
    )
