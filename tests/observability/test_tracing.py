from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind

from observability.errors import BadSampleRatio
from observability.span_store import find_trace
from observability.traceparent import is_sampled, parse_traceparent
from observability.tracing import Tracing, setup_tracing

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def _no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[Tracing]:
    made = setup_tracing("gateway", "g-1", data_dir=tmp_path)
    yield made
    made.shutdown()


def test_the_spans_of_a_request_are_found_by_its_id_with_parents_times_and_events(
    tracing: Tracing, tmp_path: Path
) -> None:
    """What a role records in retrospect hangs under the gateway's span, with the times and attributes that it gave."""
    server = tracing.start_request("POST /v1/chat/completions", request_id="r-1", attributes={"tenant": "gold"})
    parent = tracing.traceparent_of(server)
    tracing.record(
        "decode",
        request_id="r-1",
        parent_traceparent=parent,
        start_unix_ns=5 * SECOND,
        end_unix_ns=7 * SECOND,
        attributes={"tokens": 12},
        events=[("first_token", 6 * SECOND, {"index": 0})],
    )
    server.end()
    assert tracing.flush()
    decode, request = find_trace(tmp_path, "r-1")
    assert (request.name, request.kind, request.parent_id, request.role) == (
        "POST /v1/chat/completions",
        "server",
        "",
        "gateway",
    )
    assert request.attributes["tenant"] == "gold"
    assert (decode.parent_id, decode.trace_id) == (request.span_id, request.trace_id)
    assert (decode.start_unix_ns, decode.end_unix_ns, decode.duration_ms) == (5 * SECOND, 7 * SECOND, 2000.0)
    assert decode.attributes["tokens"] == 12
    assert [(event.name, event.unix_ns, event.attributes) for event in decode.events] == [
        ("first_token", 6 * SECOND, {"index": 0})
    ]


def test_a_callers_trace_is_continued(tracing: Tracing, tmp_path: Path) -> None:
    """The SERVER span is a child of the span in `traceparent`, and of the same trace."""
    span = tracing.start_request("POST", request_id="r-1", traceparent=CALLER)
    assert tracing.traceparent_of(span).startswith(CALLER[:36])
    span.end()
    tracing.flush()
    (found,) = find_trace(tmp_path, "r-1")
    assert (found.trace_id, found.parent_id) == (CALLER[3:35], CALLER[36:52])


def test_a_request_of_a_shared_trace_is_shown_alone_with_what_is_under_it(tracing: Tracing, tmp_path: Path) -> None:
    """A caller may send many requests in one trace; what is under a request is its own, named or not."""
    for request in ("r-1", "r-2"):
        span = tracing.start_request("POST", request_id=request, traceparent=CALLER)
        parent = tracing.traceparent_of(span)
        tracing.record("choice", request_id=f"{request}-0", parent_traceparent=parent, start_unix_ns=1, end_unix_ns=2)
        start = tracing.tracer.start_as_current_span
        with tracing.current(span), start("unnamed"), start("below"):
            pass
        span.end()
    tracing.flush()
    spans = find_trace(tmp_path, "r-1")
    assert sorted(span.name for span in spans) == ["POST", "below", "choice", "unnamed"]
    assert {span.request_id for span in spans} == {"r-1", "r-1-0", ""}


def test_a_choice_is_shown_with_the_request_above_it(tracing: Tracing, tmp_path: Path) -> None:
    """Its sisters are not."""
    span = tracing.start_request("POST", request_id="r-1")
    for choice in range(2):
        tracing.record(
            f"choice {choice}",
            request_id=f"r-1-{choice}",
            parent_traceparent=tracing.traceparent_of(span),
            start_unix_ns=1,
            end_unix_ns=2,
        )
    span.end()
    tracing.flush()
    assert sorted(span.name for span in find_trace(tmp_path, "r-1-1")) == ["POST", "choice 1"]


@pytest.mark.parametrize("parent", ["", "garbage", CALLER[:-2] + "00"])
def test_a_role_records_nothing_under_a_parent_that_is_not_sampled(
    tracing: Tracing, tmp_path: Path, parent: str
) -> None:
    """The gateway decided; everyone behind it follows the flag and pays nothing."""
    made = tracing.record("queue", request_id="r-1", parent_traceparent=parent, start_unix_ns=1, end_unix_ns=2)
    tracing.flush()
    assert made == ""
    assert find_trace(tmp_path, "r-1") == []


def test_at_ratio_zero_only_a_callers_own_decision_is_followed(tmp_path: Path) -> None:
    """ParentBased(TraceIdRatio): the ratio is for traces that begin here."""
    tracing = setup_tracing("gateway", "g-1", data_dir=tmp_path, sample_ratio=0.0)
    ours = tracing.start_request("POST", request_id="r-1")
    theirs = tracing.start_request("POST", request_id="r-2", traceparent=CALLER)
    assert not is_sampled(tracing.traceparent_of(ours))
    assert parse_traceparent(tracing.traceparent_of(ours)) is not None  # still an id for logs and the answer's header
    ours.end()
    theirs.end()
    tracing.shutdown()
    assert find_trace(tmp_path, "r-1") == []
    assert len(find_trace(tmp_path, "r-2")) == 1


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_of_zero_to_one_is_refused_at_start(ratio: float, tmp_path: Path) -> None:
    """Else it would only be found out by the traces that are missing."""
    with pytest.raises(BadSampleRatio):
        setup_tracing("gateway", "g-1", data_dir=tmp_path, sample_ratio=ratio)


def test_clocks_that_step_back_give_no_negative_durations(tracing: Tracing, tmp_path: Path) -> None:
    """Wall clocks are adjusted while requests run."""
    parent = tracing.record("a", request_id="r", parent_traceparent=None, start_unix_ns=9, end_unix_ns=3)
    assert is_sampled(parent)
    tracing.flush()
    (span,) = find_trace(tmp_path, "r")
    assert (span.start_unix_ns, span.end_unix_ns) == (9, 9)


def test_errors_links_and_kinds_are_kept(tracing: Tracing, tmp_path: Path) -> None:
    """A step span links to the requests in it; an invalid link is left out."""
    tracing.record(
        "step",
        request_id="r",
        parent_traceparent=CALLER,
        start_unix_ns=1,
        end_unix_ns=2,
        links=[CALLER, "garbage"],
        kind=SpanKind.CONSUMER,
        error="worker died",
    )
    tracing.flush()
    (span,) = find_trace(tmp_path, "r")
    assert (span.links, span.kind, span.error) == ([CALLER[3:52]], "consumer", "worker died")


def test_long_attributes_are_cut(tracing: Tracing, tmp_path: Path) -> None:
    """Nothing is unbounded: an attribute from a client cannot fill the disk."""
    tracing.record(
        "a", request_id="r", parent_traceparent=None, start_unix_ns=1, end_unix_ns=2, attributes={"big": "x" * 100_000}
    )
    tracing.flush()
    assert len(str(find_trace(tmp_path, "r")[0].attributes["big"])) == 1024


def test_shutdown_flushes_and_spans_after_it_are_dropped(tmp_path: Path) -> None:
    """The drain ends with this; a straggler must not raise."""
    tracing = setup_tracing("gateway", "g-1", data_dir=tmp_path, delay_ms=60_000)
    tracing.record("a", request_id="r", parent_traceparent=None, start_unix_ns=1, end_unix_ns=2)
    tracing.shutdown()
    tracing.shutdown()
    tracing.record("late", request_id="r", parent_traceparent=None, start_unix_ns=1, end_unix_ns=2)
    assert [span.name for span in find_trace(tmp_path, "r")] == ["a"]


def test_without_a_data_directory_nothing_is_stored_and_nothing_fails() -> None:
    """A role on another machine may have a collector only, or nothing."""
    tracing = setup_tracing("worker", "w-1", data_dir=None)
    assert tracing.record("a", request_id="r", parent_traceparent=None, start_unix_ns=1, end_unix_ns=2)
    tracing.shutdown()


def test_spans_go_to_a_collector_too_when_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTLP over HTTP, with the spans' names in the body; `headgate trace` keeps working."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        tracing = setup_tracing("scheduler", "s-1", data_dir=tmp_path)
        tracing.record("prefill", request_id="r-7", parent_traceparent=None, start_unix_ns=1, end_unix_ns=2)
        tracing.shutdown()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"prefill" in body
    assert b"headgate-scheduler" in body
    assert len(find_trace(tmp_path, "r-7")) == 1


def test_the_exporter_for_collectors_is_not_loaded_when_there_is_none(tmp_path: Path) -> None:
    """It costs each process memory that the embedded default has no use for."""
    program = (
        "import sys; from observability.tracing import setup_tracing; "
        f"setup_tracing('gateway', 'g', data_dir={str(tmp_path)!r}).shutdown(); "
        "sys.exit('requests' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
