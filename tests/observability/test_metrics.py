from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from observability.metrics import (
    CacheMetrics,
    DecisionMetrics,
    EdgeMetrics,
    LedgerMetrics,
    Metrics,
    SchedulerMetrics,
    Tally,
    TenantLabels,
    WorkerMetrics,
)
from observability.metrics.nats_server import NatsServerMetrics, Varz


def _samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = metrics.render()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def _value(metrics: Metrics, name: str, **labels: str) -> float:
    return _samples(metrics)[name, frozenset(labels.items())]


def test_every_name_of_the_design_is_there() -> None:
    """Dashboards and alerts are written against these names."""
    metrics = Metrics("all", "a")
    edge, decisions, cache = EdgeMetrics(metrics), DecisionMetrics(metrics), CacheMetrics(metrics)
    scheduler, worker, ledger = SchedulerMetrics(metrics), WorkerMetrics(metrics), LedgerMetrics(metrics)
    edge.finished(tenant="t", tier="flex", model="m", outcome="stop", duration_s=1, ttft_s=0.1, tpot_s=0.01)
    edge.promised(tenant="t", slo="ttft", attained=False)
    edge.overhead("parse", 0.001)
    decisions.decided("refused", "sla_unattainable", retry_after_s=1.5)
    decisions.predicted(predicted_s=0.1, measured_s=0.12)
    cache.blocks(model="m", worker="w", counts={"free": 1, "used": 2, "cached": 3, "host": 4})
    scheduler.queued(0.1)
    scheduler.preempted("swap", lost_tokens=0)
    scheduler.prefix_hit(16)
    scheduler.served("t", 5)
    worker.step(0.004)
    ledger.unsettled(3)
    names = {name for name, _ in _samples(metrics)}
    assert names >= {
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "gen_ai_server_time_per_output_token_seconds_bucket",
        "gen_ai_server_request_duration_seconds_bucket",
        "headgate_requests_total",
        "headgate_admission_decisions_total",
        "headgate_sla_attained_total",
        "headgate_sla_eligible_total",
        "headgate_prediction_error_ratio_sum",
        "headgate_queue_seconds_count",
        "headgate_retry_after_seconds_sum",
        "headgate_overhead_seconds_bucket",
        "headgate_preemptions_total",
        "headgate_preempt_lost_tokens_total",
        "headgate_kv_blocks",
        "headgate_prefix_hit_tokens_total",
        "headgate_step_seconds_bucket",
        "headgate_tenant_service_tokens_total",
        "headgate_ledger_unsettled",
        "process_resident_memory_bytes",
    }
    assert not any(name.endswith("_created") for name in names)


def test_the_tenant_label_is_capped() -> None:
    """Tenants beyond the limit are counted together, those before keep their names."""
    metrics = Metrics("gateway", "g", tenants=TenantLabels(2))
    edge = EdgeMetrics(metrics)
    for tenant in ("a", "b", "c", "d", "a"):
        edge.finished(tenant=tenant, tier="flex", model="m", outcome="stop", duration_s=1)
    counts = {
        tenant: _value(metrics, "headgate_requests_total", tenant=tenant, tier="flex", model="m", outcome="stop")
        for tenant in ("a", "b", "other")
    }
    assert counts == {"a": 2, "b": 1, "other": 2}


def test_attainment_is_the_ratio_of_two_counters() -> None:
    """Eligible counts each promise judged, attained those kept; both exist from the first request."""
    metrics = Metrics("gateway", "g")
    edge = EdgeMetrics(metrics)
    edge.promised(tenant="t", slo="ttft", attained=False)
    assert _value(metrics, "headgate_sla_attained_total", tenant="t", slo="ttft") == 0
    edge.promised(tenant="t", slo="ttft", attained=True)
    assert _value(metrics, "headgate_sla_attained_total", tenant="t", slo="ttft") == 1
    assert _value(metrics, "headgate_sla_eligible_total", tenant="t", slo="ttft") == 2


def test_the_histograms_have_the_buckets_of_the_convention() -> None:
    """A TTFT of 0.3 s is in the bucket up to 0.5 and not in that up to 0.25."""
    metrics = Metrics("gateway", "g")
    EdgeMetrics(metrics).finished(tenant="t", tier="flex", model="m", outcome="error", duration_s=2, ttft_s=0.3)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "headgate", "gen_ai_request_model": "m"}
    name = "gen_ai_server_time_to_first_token_seconds_bucket"
    assert [_value(metrics, name, **labels, le=le) for le in ("0.25", "0.5", "+Inf")] == [0, 1, 1]
    name = "gen_ai_server_request_duration_seconds_count"
    assert _value(metrics, name, **labels, error_type="error") == 1


def test_a_dead_worker_leaves_no_gauge_behind() -> None:
    """Nobody would refresh it."""
    metrics = Metrics("gateway", "g")
    cache = CacheMetrics(metrics)
    cache.blocks(model="m", worker="w1", counts={"free": 5})
    cache.blocks(model="m", worker="w2", counts={"free": 7})
    cache.gone(model="m", worker="w1")
    found = {dict(labels)["worker"] for name, labels in _samples(metrics) if name == "headgate_kv_blocks"}
    assert found == {"w2"}


def test_roles_in_one_process_do_not_mix() -> None:
    """No registry is global."""
    first, second = Metrics("gateway", "a"), Metrics("gateway", "b")
    LedgerMetrics(first).unsettled(1)
    LedgerMetrics(second).unsettled(2)
    assert _value(first, "headgate_ledger_unsettled") == 1
    assert first.render()[1].startswith("text/plain")


OPENMETRICS = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4"


def test_a_sampled_request_is_the_exemplar_of_its_bucket() -> None:
    """Prometheus asks for OpenMetrics and gets the trace ids of TTFT and TPOT; a request without trace leaves none."""
    metrics = Metrics("gateway", "g")
    edge = EdgeMetrics(metrics)
    common = {"tenant": "t", "tier": "flex", "model": "m", "outcome": "stop", "duration_s": 1.0}
    edge.finished(**common, ttft_s=0.3, tpot_s=0.02, trace_id="ab" * 16)  # type: ignore[arg-type]
    edge.finished(**common, ttft_s=0.6, tpot_s=0.02)  # type: ignore[arg-type]
    body, content_type = metrics.render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    found = {
        (sample.name, sample.labels["le"]): (sample.exemplar.labels, sample.exemplar.value)
        for family in open_families(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }
    trace = {"trace_id": "ab" * 16}
    assert found == {
        ("gen_ai_server_time_to_first_token_seconds_bucket", "0.5"): (trace, 0.3),
        ("gen_ai_server_time_per_output_token_seconds_bucket", "0.025"): (trace, 0.02),
        ("headgate_ttft_seconds_bucket", "0.3"): (trace, 0.3),
        ("headgate_tpot_seconds_bucket", "0.02"): (trace, 0.02),
    }
    assert b"trace_id" not in metrics.render()[0]


def test_a_refusal_of_a_new_kind_is_a_rise() -> None:
    """The series of every reason is there before its first refusal, or `rate` would not see that."""
    metrics = Metrics("admission", "a")
    decisions = DecisionMetrics(metrics, reasons=["overloaded"])
    labels = {"decision": "refused", "reason": "overloaded", "tier": "flex"}
    assert _value(metrics, "headgate_admission_decisions_total", **labels) == 0
    decisions.decided("refused", "overloaded", tier="flex", retry_after_s=2.0, deferred_s=0.5)
    assert _value(metrics, "headgate_admission_decisions_total", **labels) == 1
    assert _value(metrics, "headgate_deferred_seconds_count") == 1


def test_a_tally_is_a_histogram() -> None:
    """Its edges are inclusive, as those of the library; what is above all is in the last."""
    tally = Tally((1, 2.5))
    for value in (0.5, 1, 1.1, 2.5, 3):
        tally.add(value)
    assert tally.buckets() == [("1.0", 2), ("2.5", 4), ("+Inf", 5)]
    assert tally.total == pytest.approx(8.1)


def test_a_silent_nats_server_is_down_and_has_no_figures() -> None:
    """What it said before it fell silent is not told as if it were now."""
    metrics = Metrics("ledger", "l0")
    nats = NatsServerMetrics(metrics)
    assert not any(name.startswith("headgate_nats_server") for name, _ in _samples(metrics))
    nats.told("n1", Varz(connections=7))
    assert _value(metrics, "headgate_nats_server_connections", server="n1") == 7
    nats.told("n1", None)
    assert _value(metrics, "headgate_nats_server_up", server="n1") == 0
    assert not any(name == "headgate_nats_server_connections" for name, _ in _samples(metrics))
