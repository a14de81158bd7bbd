"""An OTLP receiver over HTTP, where the collector would be: it keeps the spans it is sent, by trace."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["Receiver", "Span", "problems_of_tree"]


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it came over the wire. Ids are hexadecimal, `parent` is empty for a root."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    attributes: dict[str, Any] = field(repr=False)
    events: tuple[str, ...]
    links: int


class Receiver:
    """Listens from the moment it is made until `close`."""

    def __init__(self, host: str, port: int) -> None:
        self._spans: dict[str, list[Span]] = {}
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path != "/v1/traces":
                    self.send_error(404)
                    return
                receiver._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trace(self, trace: str) -> list[Span]:
        """What has come of a trace so far."""
        with self._lock:
            return list(self._spans.get(trace, ()))

    def services(self) -> set[str]:
        """Who has sent anything."""
        with self._lock:
            return {span.service for spans in self._spans.values() for span in spans}

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            service = str(_attributes(resource.resource.attributes).get("service.name", ""))
            for scope in resource.scope_spans:
                for span in scope.spans:
                    with self._lock:
                        self._spans.setdefault(span.trace_id.hex(), []).append(_span(span, service))


def problems_of_tree(spans: Iterable[Span]) -> list[str]:
    """Why these are not one connected tree; nothing if they are."""
    spans = list(spans)
    ids = {span.id for span in spans}
    roots = [span.name for span in spans if not span.parent]
    problems = [] if len(roots) == 1 else [f"{len(roots)} roots: {', '.join(roots) or 'none'}"]
    if len(ids) != len(spans):
        problems.append(f"{len(spans)} spans with {len(ids)} ids")
    lost = [span.name for span in spans if span.parent and span.parent not in ids]
    return problems + ([f"their parent is missing: {', '.join(lost)}"] if lost else [])


def _span(span: Any, service: str) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        service,
        _attributes(span.attributes),
        tuple(event.name for event in span.events),
        len(span.links),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value: Any = getattr(pair.value, kind) if kind else None
        found[pair.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found
