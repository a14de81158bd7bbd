"""*Contracts*: is every tenant given what it was promised, and who is turned away?"""

from __future__ import annotations

from typing import Any

from observability.dashboards.panels import (
    Query,
    Variable,
    dashboard,
    late_requests,
    quantiles,
    row,
    stat,
    table,
    timeseries,
)

__all__ = ["contracts"]

_MINE = 'tenant=~"$tenant"'
_LATE = (late_requests("headgate.tenant=${__field.labels.tenant} headgate.late=true"),)
_OBJECTIVE = f"max by (tenant, slo) (headgate_contract_attainment{{{_MINE}}})"


def _row(series: str) -> str:
    """Without its name, by which a table would tell it from the other columns of its row."""
    return f"max by (tenant, slo) ({series}{{{_MINE}}})"


def contracts() -> dict[str, Any]:
    return dashboard(
        "headgate-contracts",
        "Headgate / Contracts",
        "Is every tenant given what it was promised, and who is turned away?",
        *_at_a_glance(),
        *_attainment(),
        *_turned_away(),
        *_per_tenant(),
        variables=[Variable("tenant", "headgate_contract_attainment")],
        tags=["contracts"],
    )


def _at_a_glance() -> tuple[Any, ...]:
    kept = "tenant_slo:headgate_attainment:ratio_rate5m >= bool on (tenant, slo) (1 - tenant_slo:headgate_budget:ratio)"
    return (
        stat(
            "Promises kept now",
            "Share of all promises (of a tenant, on first tokens or on pace) that were kept at least as often as "
            "promised, over five minutes.",
            Query(f"avg({kept})"),
            unit="percentunit",
            limits=(0.99, 1),
            falling=True,
        ),
        stat(
            "Promises broken now",
            "How many burn their budget faster than allowed, over five minutes.",
            Query("sum(tenant_slo:headgate_burn:rate5m > bool 1)"),
            unit="none",
            limits=(1,),
        ),
        stat(
            "Requests",
            "That are over, of all tenants.",
            Query("sum(rate(headgate_requests_total[$__rate_interval]))"),
            unit="reqps",
        ),
        stat(
            "Refused for capacity",
            "Share of decisions that refused although the tenant kept to its own limits: the stack is too small.",
            Query("headgate_refused_capacity:ratio_rate5m"),
            unit="percentunit",
            limits=(0.05, 0.2),
        ),
        stat(
            "Deferred",
            "Requests that wait at the door for a start that keeps their contract.",
            Query("sum(headgate_admission_waiting)"),
            unit="none",
        ),
        stat(
            "Overload",
            "What is given up: 0 nothing, 1 batches shrink, 2 best effort is deferred, 3 tenants above their share "
            "lose their contract, 4 best effort is refused, 5 KV is moved out ahead.",
            Query("max(headgate_overload_level)"),
            unit="none",
            limits=(2, 4),
        ),
    )


def _attainment() -> tuple[Any, ...]:
    mine = f"{{{_MINE}}}"
    return (
        row("Attainment"),
        table(
            "Contracts",
            "What each tenant is promised and gets. Burn: how many times faster than allowed the error budget is "
            "spent; above 1 for long, the contract is broken.",
            {
                "Promised": (_OBJECTIVE, "percentunit", ()),
                "5 min": (_row("tenant_slo:headgate_attainment:ratio_rate5m"), "percentunit", ()),
                "1 h": (_row("tenant_slo:headgate_attainment:ratio_rate1h"), "percentunit", ()),
                "6 h": (_row("tenant_slo:headgate_attainment:ratio_rate6h"), "percentunit", ()),
                "Burn 5 min": (_row("tenant_slo:headgate_burn:rate5m"), "none", (1, 6)),
                "Burn 1 h": (_row("tenant_slo:headgate_burn:rate1h"), "none", (1, 6)),
                "Burn 6 h": (_row("tenant_slo:headgate_burn:rate6h"), "none", (1, 3)),
            },
            keys=("tenant", "slo"),
        ).wide(24, 8),
        timeseries(
            "Attainment over five minutes",
            "Share of the admitted requests that kept the promise. Dashed: what was promised.",
            Query(f"tenant_slo:headgate_attainment:ratio_rate5m{mine}", "{{tenant}} {{slo}}"),
            Query(_OBJECTIVE, "{{tenant}} {{slo}} promised"),
            unit="percentunit",
            least=None,
            most=1,
            links=_LATE,
        ).wide(12),
        timeseries(
            "Budget burn over one hour",
            "1 spends the error budget exactly; the alert HeadgateContractBurnsFast fires at 14.4 (at less, where less "
            "was promised).",
            Query(f"tenant_slo:headgate_burn:rate1h{mine}", "{{tenant}} {{slo}}"),
            unit="none",
            limits=(1, 6),
            links=_LATE,
        ).wide(12),
    )


def _turned_away() -> tuple[Any, ...]:
    decisions = "sum by ({by}) (rate(headgate_admission_decisions_total{{{where}}}[$__rate_interval]))"
    refused = 'outcome!~"stop|length|cancelled|error|ok|invalid|unauthorized",' + _MINE
    return (
        row("Who comes in"),
        timeseries(
            "Decisions",
            "A deferred request is counted again when it is admitted or refused.",
            Query(decisions.format(by="decision", where=""), "{{decision}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "Refused, by reason",
            "429 are the tenant's own limits (requests_per_minute, tokens_per_minute, concurrency, daily_budget), the "
            "others our capacity.",
            Query(decisions.format(by="reason", where='decision="refused"'), "{{reason}}"),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "Refused, by tenant and reason",
            "As its clients were told.",
            Query(
                f"sum by (tenant, outcome) (rate(headgate_requests_total{{{refused}}}[$__rate_interval]))",
                "{{tenant}} {{outcome}}",
            ),
            unit="reqps",
            stacked=True,
        ),
        timeseries(
            "Retry-After",
            "When refused clients are told to come back. 0: nobody was told.",
            *quantiles("headgate_retry_after_seconds", 0.5, 0.95, or_zero=True),
            unit="s",
        ),
        timeseries(
            "Deferred, by tier",
            "Requests that wait at the door.",
            Query("sum by (tier) (headgate_admission_waiting)", "{{tier}}"),
            unit="none",
            stacked=True,
        ),
        timeseries(
            "Wait of the deferred",
            "From the arrival of a deferred request to its answer, on average.",
            Query(
                "sum(rate(headgate_deferred_seconds_sum[$__rate_interval]))"
                " / clamp_min(sum(rate(headgate_deferred_seconds_count[$__rate_interval])), 0.001)",
                "mean",
            ),
            unit="s",
        ),
        timeseries(
            "Held back",
            "Share of a promise that admission keeps as a margin. It grows while promises are missed, at most to 30 % "
            "(first tokens) and 10 % (pace).",
            Query(f"max by (tenant, slo) (headgate_admission_margin_ratio{{{_MINE}}})", "{{tenant}} {{slo}}"),
            unit="percentunit",
        ),
        timeseries(
            "Measured over predicted time to the first token",
            "Of the admitted. Above 1: later than admission foresaw.",
            *quantiles("headgate_prediction_error_ratio", 0.5, 0.9, 0.99),
            unit="none",
            limits=(1.2, 2),
        ),
        timeseries(
            "Share of the service",
            "Of all tokens that were computed. Tenants of a tier share by their weights when there is too little.",
            Query(
                f"sum by (tenant) (rate(headgate_tenant_service_tokens_total{{{_MINE}}}[$__rate_interval]))"
                " / on () group_left () clamp_min("
                "sum(rate(headgate_tenant_service_tokens_total[$__rate_interval])), 0.001)",
                "{{tenant}}",
            ),
            unit="percentunit",
            stacked=True,
            most=1,
        ),
    )


def _per_tenant() -> tuple[Any, ...]:
    return (
        row("$tenant", repeat="tenant"),
        timeseries(
            "Time to the first token: $tenant",
            "Against what was promised to short prompts; long ones may take longer, if the contract says so "
            "(headgate_contract_ttft_per_1k_seconds). Points are requests: click one for its trace.",
            *quantiles("headgate_ttft_seconds", 0.5, 0.95, 0.99, where=_MINE, by="tenant", exemplars=True),
            Query(f"max by (tenant) (headgate_contract_ttft_seconds{{{_MINE}}})", "promised"),
            unit="s",
            links=_LATE,
        ).wide(12),
        timeseries(
            "Time of each later token: $tenant",
            "Mean of each request, against what was promised.",
            *quantiles("headgate_tpot_seconds", 0.5, 0.95, 0.99, where=_MINE, by="tenant", exemplars=True),
            Query(f"max by (tenant) (headgate_contract_tpot_seconds{{{_MINE}}})", "promised"),
            unit="s",
            links=_LATE,
        ).wide(12),
    )
