"""What a collector gets: the spans of one request as one tree, with the attributes that the docs promise."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from traced_stack import TracedStack, traced
from virtual_stack import request

SERVER = "POST /v1/chat/completions"


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def spans(self) -> dict[str, list[Span]]:
        """By the name of the service."""
        found: dict[str, list[Span]] = {}
        for one in self.requests:
            for resource in one.resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
                for scope in resource.scope_spans:
                    found.setdefault(service, []).extend(scope.spans)
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{made.server.server_port}")
    yield made
    made.close()


def names(span: Span) -> set[str]:
    return {attribute.key for attribute in span.attributes}


@pytest.mark.parametrize("ratio", [1.0, 0.0], ids=["sampled", "kept because it was late"])
def test_a_collector_gets_one_connected_tree_with_the_attributes_promised(
    collector: Collector, tmp_path: Path, ratio: float
) -> None:
    """From every process of the request, however it came to be recorded."""

    async def scenario(traces: TracedStack) -> None:
        # In a tier without contracts it is let in whatever is foreseen.
        assert await traces.serve(request(1, prompt=100, tier=2, ttft_s=0.001)) == "ok"

    traced(tmp_path, scenario, ratio=ratio, steps_every=5)
    services = collector.spans()
    steps = [span for span in services["headgate-scheduler"] if span.name == "step"]
    spans = {span.name: span for many in services.values() for span in many if span.name != "step"}
    assert {name: service for service, many in services.items() for name in {span.name for span in many}} == {
        SERVER: "headgate-gateway",
        "admission": "headgate-admission",
        "queue": "headgate-scheduler",
        "prefill": "headgate-scheduler",
        "decode": "headgate-scheduler",
        "chat org/m-0.6B": "headgate-worker",
        "step": "headgate-scheduler",
    }
    server = spans.pop(SERVER)
    assert server.parent_span_id == b""
    assert server.kind == Span.SpanKind.SPAN_KIND_SERVER
    assert {span.parent_span_id for span in spans.values()} == {server.span_id}
    assert {span.trace_id for span in spans.values()} == {server.trace_id}
    assert {"headgate.tenant", "headgate.tier", "headgate.late", "gen_ai.usage.output_tokens"} <= names(server)
    assert {"headgate.decision", "headgate.predicted_ttft_ms", "headgate.deadline_ms"} <= names(spans["admission"])
    assert {"headgate.cached_tokens", "headgate.chunks", "headgate.worker"} <= names(spans["prefill"])
    assert [event.name for event in spans["prefill"].events] == ["chunk", "chunk", "first_token"]
    assert all("headgate.request_id" in names(span) for span in (server, *spans.values()))
    assert {"headgate.rows", "headgate.prefill_tokens", "headgate.predicted_ms", "headgate.epoch"} <= names(steps[0])
    linked = {link.span_id for name in ("prefill", "decode") for link in spans[name].links}
    assert linked == {step.span_id for step in steps}
    # Of a request that was not sampled a step cannot know that it will be kept.
    assert {link.trace_id for step in steps for link in step.links} == ({server.trace_id} if ratio else set())
