"""Which requests count for a contract in the metrics that alerts look at, and which of them as kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.messages import Decision
from gateway.observing import EdgeHooks
from gateway.traces import RequestTraces
from observability.metrics import EdgeMetrics, Metrics
from observability.tracing import setup_tracing
from policies.vocabulary import Request, Sampling


@pytest.mark.parametrize(
    ("finish", "ttft_s", "tpot_s", "judged"),
    [
        ("stop", 0.05, 0.005, {"ttft": (1, 1), "tpot": (1, 1)}),
        ("length", 0.15, 0.015, {"ttft": (1, 0), "tpot": (1, 0)}),
        ("stop", 0.05, None, {"ttft": (1, 1), "tpot": (0, 0)}),  # one token has no pace
        ("error", None, None, {"ttft": (1, 0), "tpot": (0, 0)}),
        ("error", 0.05, 0.005, {"ttft": (1, 0), "tpot": (1, 1)}),
        ("cancelled", 0.05, 0.005, {"ttft": (0, 0), "tpot": (0, 0)}),
        ("cancelled", None, None, {"ttft": (0, 0), "tpot": (0, 0)}),
    ],
)
def test_an_admitted_request_that_fails_has_missed_its_promise_and_one_that_was_left_is_not_judged(
    tmp_path: Path, finish: str, ttft_s: float | None, tpot_s: float | None, judged: dict[str, tuple[int, int]]
) -> None:
    """A failure counts against the contract, as it does for admission and on the live page; only a client takes its
    own request out of the count."""
    tracing = setup_tracing("gateway", "g0", data_dir=tmp_path, sample_ratio=0.0)
    metrics = Metrics("gateway", "g0")
    wanted = Request(
        id="req-1-0",
        attempt=1,
        tenant="gold",
        model="m",
        gateway="g0",
        prompt=b"\0" * 16,
        max_tokens=8,
        sampling=Sampling(seed=1),
        ttft_s=0.1,
        tpot_s=0.01,
    )
    edge = EdgeHooks(EdgeMetrics(metrics), tracing, RequestTraces())
    observer = edge.start("POST /v1/completions", request_id="req-1", traceparent=None)
    observer.asked(wanted, tenant="gold", key="k", stream=True)
    observer.decided(wanted, Decision(outcome="admitted"), 0.001)
    if ttft_s is not None:
        observer.first_token(wanted, ttft_s)
    observer.generated(wanted, output_tokens=3, cached_tokens=0, tpot_s=tpot_s, finish=finish)
    tracing.shutdown()

    def count(name: str, slo: str) -> int:
        return int(metrics.registry.get_sample_value(name, {"tenant": "gold", "slo": slo}) or 0)

    assert {
        slo: (count("headgate_sla_eligible_total", slo), count("headgate_sla_attained_total", slo)) for slo in judged
    } == judged
