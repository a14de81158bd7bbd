"""Which requests a gateway keeps the traces of, whom it asks for theirs, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.messages import Decision
from gateway.hooks import Observer
from gateway.observing import EdgeHooks
from gateway.traces import RequestTraces
from observability.metrics import EdgeMetrics, Metrics
from observability.span_store import Span, find_trace
from observability.tracing import Tracing, setup_tracing
from policies.vocabulary import Request, Sampling

UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
SAMPLED = UNSAMPLED[:-2] + "01"
Start = Callable[[str | None], Observer]


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[Tracing]:
    made = setup_tracing("gateway", "g0", data_dir=tmp_path, sample_ratio=0.0)
    yield made
    made.shutdown()


@pytest.fixture
def traces() -> RequestTraces:
    return RequestTraces()


@pytest.fixture
def start(tracing: Tracing, traces: RequestTraces) -> Start:
    hooks = EdgeHooks(EdgeMetrics(Metrics("gateway", "g0")), tracing, traces)
    return lambda parent: hooks.start("POST /v1/chat/completions", request_id="req-1", traceparent=parent)


def spans(tracing: Tracing, tmp_path: Path) -> list[Span]:
    tracing.flush()
    return find_trace(tmp_path, "req-1")


def request(choice: int = 0, *, attempt: int = 1) -> Request:
    """With a promise of 100 ms to the first token and 10 ms to each other."""
    return Request(
        id=f"req-1-{choice}",
        attempt=attempt,
        tenant="gold",
        model="m",
        gateway="g0",
        prompt=b"\0" * 16,
        max_tokens=8,
        sampling=Sampling(seed=1),
        ttft_s=0.1,
        tpot_s=0.01,
    )


def serve(
    observer: Observer,
    *,
    outcome: str = "ok",
    status: int = 200,
    ttft_s: float | None = 0.05,
    tpot_s: float | None = 0.005,
    seconds: float = 0.2,
    finish: str = "stop",
    choices: int = 1,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """All that an edge tells of an admitted request."""
    wanted = [request(choice) for choice in range(choices)]
    for one in wanted:
        observer.asked(one, tenant="gold", key="k", stream=True)
    meanwhile()
    for one in wanted:
        observer.decided(one, Decision(outcome="admitted"), 0.001)
        if ttft_s is not None:
            observer.first_token(one, ttft_s)
        observer.generated(one, output_tokens=8, cached_tokens=0, tpot_s=tpot_s, finish=finish)
    observer.finished(status=status, outcome=outcome, seconds=seconds)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        pytest.param({}, False, id="kept its promises"),
        pytest.param({"ttft_s": 0.15}, True, id="late first token"),
        pytest.param({"tpot_s": 0.015}, True, id="too slow"),
        pytest.param({"outcome": "error", "finish": "error"}, True, id="failed in its stream"),
        pytest.param({"outcome": "error", "status": 500, "ttft_s": None}, True, id="failed before it"),
        pytest.param({"outcome": "cancelled", "finish": "cancelled"}, False, id="client left"),
        pytest.param(
            {"outcome": "cancelled", "finish": "cancelled", "ttft_s": None, "seconds": 0.09},
            False,
            id="client left in time",
        ),
        pytest.param(
            {"outcome": "cancelled", "finish": "cancelled", "ttft_s": None, "seconds": 5.0},
            True,
            id="client waited in vain",
        ),
    ],
)
def test_what_did_not_go_well_is_kept_and_the_others_are_asked(
    start: Start, traces: RequestTraces, tracing: Tracing, tmp_path: Path, options: dict[str, float], kept: bool
) -> None:
    """Though it was not sampled; the rest leaves nothing and costs no message."""
    serve(start(UNSAMPLED), **options)  # type: ignore[arg-type]
    assert len(spans(tracing, tmp_path)) == kept
    assert traces.take_to_ask() == (["req-1-0"] if kept else [])


def test_a_refusal_is_kept_and_nobody_is_asked(
    start: Start, traces: RequestTraces, tracing: Tracing, tmp_path: Path
) -> None:
    """Admission knows by itself; a flood of refusals makes no messages."""
    observer = start(None)
    observer.asked(request(), tenant="gold", key="k", stream=True)
    observer.decided(request(), Decision(outcome="refused", reason="queue_full"), 0.001)
    observer.finished(status=429, outcome="refused", seconds=0.01)
    (span,) = spans(tracing, tmp_path)
    assert (span.attributes["headgate.outcome"], span.attributes["headgate.reason"]) == ("refused", "queue_full")
    assert traces.take_to_ask() == []


@pytest.mark.parametrize("outcome", ["invalid", "unauthorized"])
def test_a_mistake_of_the_client_is_not_kept(start: Start, tracing: Tracing, tmp_path: Path, outcome: str) -> None:
    """It never was a request; whoever probes for keys must not fill the store."""
    start(UNSAMPLED).finished(status=400, outcome=outcome, seconds=0.01)
    assert spans(tracing, tmp_path) == []


def test_a_sampled_request_is_recorded_and_nobody_is_asked(
    start: Start, traces: RequestTraces, tracing: Tracing, tmp_path: Path
) -> None:
    """Everybody recorded it by its flag."""
    serve(start(SAMPLED), ttft_s=5.0)
    assert len(spans(tracing, tmp_path)) == 1
    assert traces.take_to_ask() == []


@pytest.mark.parametrize("when", ["before its end", "after its end"])
def test_a_preemption_that_a_scheduler_tells_of_keeps_all_choices_of_the_request(
    start: Start, traces: RequestTraces, tracing: Tracing, tmp_path: Path, when: str
) -> None:
    """However late it is heard; those that it does not have are somebody else's."""
    observer = start(UNSAMPLED)
    if when == "before its end":
        serve(observer, choices=2, meanwhile=lambda: traces.keep(["req-1-1", "other"]))
    else:
        serve(observer, choices=2)
        assert spans(tracing, tmp_path) == []
        traces.keep(["req-1-1", "other"])
    assert len(spans(tracing, tmp_path)) == 1
    assert traces.take_to_ask() == ["req-1-0", "req-1-1"]
    assert traces.take_to_ask() == []


def test_a_failover_is_an_event_and_keeps_the_trace(
    start: Start, traces: RequestTraces, tracing: Tracing, tmp_path: Path
) -> None:
    """Something broke, although the client saw none of it."""
    serve(start(UNSAMPLED), meanwhile=lambda: traces.happened("req-1-0", "failover", {"headgate.attempt": 2}))
    (span,) = spans(tracing, tmp_path)
    assert [event.name for event in span.events] == ["failover", "first_token"]
    assert traces.take_to_ask() == ["req-1-0"]
    traces.happened("req-1-0", "failover", {})  # it has ended
    assert traces.take_to_ask() == []
