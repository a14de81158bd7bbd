"""One exposition out of many."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from observability.merge import merged
from observability.metrics import DecisionMetrics, EdgeMetrics, Metrics, WorkerMetrics


def test_every_process_shows_under_one_family() -> None:
    """Families of several processes are joined; samples of others name their process, and the text parses again."""
    own, first, second = Metrics("gateway", "g0"), Metrics("worker", "w0"), Metrics("worker", "w1")
    for metrics, steps in ((first, 2), (second, 3)):
        worker = WorkerMetrics(metrics)
        for _ in range(steps):
            worker.step(0.01)
    admission = Metrics("admission", "a0")
    DecisionMetrics(admission).decided("refused", "kv_exhausted", retry_after_s=1.0)
    body, _ = merged(
        own.registry,
        {"worker.w0": first.render()[0], "worker.w1": second.render()[0], "admission.a0": admission.render()[0]},
    )
    samples = {
        (sample.name, sample.labels.get("process", "")): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["headgate_step_seconds_count", "worker.w0"] == 2
    assert samples["headgate_step_seconds_count", "worker.w1"] == 3
    assert samples["headgate_admission_decisions_total", "admission.a0"] == 1
    assert samples["headgate_up", ""] == 1
    assert ("process_resident_memory_bytes", "worker.w0") in samples


def test_exemplars_survive_the_merge() -> None:
    """The gateway's own, and those of a process that told OpenMetrics; and the result is OpenMetrics that parses."""
    accept = "application/openmetrics-text;version=1.0.0"
    own, other = Metrics("gateway", "g0"), Metrics("gateway", "g1")
    for metrics, trace in ((own, "aa" * 16), (other, "bb" * 16)):
        EdgeMetrics(metrics).finished(
            tenant="t", tier="flex", model="m", outcome="stop", duration_s=1.0, ttft_s=0.3, trace_id=trace
        )
    ledger = Metrics("ledger", "l0")  # tells plain text
    body, content_type = merged(
        own.registry, {"gateway.g1": other.render(accept)[0], "ledger.l0": ledger.render()[0]}, accept
    )
    assert content_type.startswith("application/openmetrics-text")
    found = {
        sample.labels.get("process", ""): sample.exemplar.labels["trace_id"]
        for family in open_families(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.name == "headgate_ttft_seconds_bucket" and sample.exemplar
    }
    assert found == {"": "aa" * 16, "gateway.g1": "bb" * 16}
