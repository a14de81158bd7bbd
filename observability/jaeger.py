"""The spans of a request from a Jaeger, by the HTTP JSON of its query service, which its own page uses (Jaeger 1 and
2).

https://www.jaegertracing.io/docs/latest/architecture/apis/: `GET /api/traces?service=…&tags={…}` and `GET
/api/traces/{id}`. What arrived there over OTLP comes back in Jaeger's words: attributes are tags, events are logs,
links and parents are references, times are microseconds, the resource is a process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import msgspec

from observability.errors import JaegerUnreadable
from observability.span_store import MOST_LINKED, REQUEST_ID, Scalar, Span, SpanEvent, of_request

__all__ = ["find_in_jaeger", "find_linked_in_jaeger"]

# Its root is the gateway's; a choice of several has spans of its own behind it; one that never got there has these.
_SERVICES = ("headgate-gateway", "headgate-scheduler", "headgate-admission")
_LOOKBACK_S = 7 * 86400.0
_TIMEOUT_S = 10.0
_SCALARS: Mapping[str, type[Any]] = {"bool": bool, "int64": int, "float64": float, "string": str, "binary": str}
# What the translation from OTLP puts among the attributes.
_KIND, _ERROR, _DESCRIPTION = "span.kind", "error", "otel.status_description"
_TRANSLATED = frozenset(
    {_KIND, _ERROR, _DESCRIPTION, "otel.status_code", "otel.scope.name", "otel.scope.version", "internal.span.format"}
)


class _Tag(msgspec.Struct, frozen=True):
    key: str
    value: Any = None
    type: str = "string"


class _Reference(msgspec.Struct, frozen=True, rename={"kind": "refType", "trace_id": "traceID", "span_id": "spanID"}):
    trace_id: str
    span_id: str
    kind: str = "CHILD_OF"


class _Log(msgspec.Struct, frozen=True):
    timestamp: int
    fields: list[_Tag]


class _JaegerSpan(
    msgspec.Struct,
    frozen=True,
    rename={
        "trace_id": "traceID",
        "span_id": "spanID",
        "name": "operationName",
        "start_us": "startTime",
        "duration_us": "duration",
        "process": "processID",
    },
):
    trace_id: str
    span_id: str
    name: str
    start_us: int
    duration_us: int
    process: str = ""
    references: list[_Reference] | None = None
    tags: list[_Tag] | None = None
    logs: list[_Log] | None = None


class _Process(msgspec.Struct, frozen=True, rename={"service": "serviceName"}):
    service: str = ""
    tags: list[_Tag] | None = None


class _Trace(msgspec.Struct, frozen=True, rename={"trace_id": "traceID"}):
    trace_id: str
    spans: list[_JaegerSpan]
    processes: dict[str, _Process]


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Trace] | None = None
    errors: list[dict[str, Any]] | None = None


def find_in_jaeger(url: str, request_id: str, *, timeout_s: float = _TIMEOUT_S) -> list[Span]:
    """As `find_trace`, from the Jaeger whose page is at `url`; of the last seven days. Blocks.

    `url` may hold a user and a password, for one behind basic authentication.

    :raises JaegerUnreadable: it does not answer, or not as a Jaeger.
    """
    with _client(url, timeout_s) as http:
        now_us = int(time.time() * 1e6)
        query: dict[str, str | int] = {
            "tags": msgspec.json.encode({REQUEST_ID: request_id}).decode(),
            "start": now_us - int(_LOOKBACK_S * 1e6),
            "end": now_us + 60_000_000,  # its clock may be ahead of ours
            "limit": 20,
        }
        for service in _SERVICES:
            found = _get(http, "api/traces", {"service": service, **query})
            # A search may give what was there when it was indexed; by its id a trace comes whole.
            traces = [
                whole for trace in found for whole in _get(http, f"api/traces/{trace.trace_id}", {}, missing_ok=True)
            ]
            spans = of_request([span for trace in traces for span in _spans(trace)], request_id)
            if spans:
                return sorted(spans, key=lambda span: (span.start_unix_ns, span.end_unix_ns))
    return []


def find_linked_in_jaeger(url: str, spans: Iterable[Span], *, timeout_s: float = _TIMEOUT_S) -> list[Span]:
    """As `find_linked`, from a Jaeger. Blocks.

    :raises JaegerUnreadable: as `find_in_jaeger`.
    """
    wanted = {link for span in spans for link in span.links}
    with _client(url, timeout_s) as http:
        traces = [
            trace
            for trace_id in sorted({link.partition("-")[0] for link in wanted})[:MOST_LINKED]
            for trace in _get(http, f"api/traces/{trace_id}", {}, missing_ok=True)
        ]
    return [span for trace in traces for span in _spans(trace) if f"{span.trace_id}-{span.span_id}" in wanted]


def _client(url: str, timeout_s: float) -> httpx.Client:
    try:
        at = httpx.URL(f"{url.rstrip('/')}/")
    except httpx.InvalidURL as error:
        raise JaegerUnreadable(f"the address of Jaeger cannot be read: {error}") from error
    # Apart from the address, which is in errors and logs. Proxies of the environment are for the world outside.
    login = (at.username, at.password) if at.userinfo else None
    return httpx.Client(base_url=at.copy_with(userinfo=b""), auth=login, timeout=timeout_s, trust_env=False)


def _get(http: httpx.Client, path: str, query: Mapping[str, str | int], *, missing_ok: bool = False) -> list[_Trace]:
    try:
        answer = http.get(path, params=query)
        if answer.status_code == 404 and missing_ok:
            return []
        if not answer.is_success:
            raise JaegerUnreadable(f"{http.base_url}{path} answers {answer.status_code}, and not as a Jaeger does")
        decoded = msgspec.json.decode(answer.content, type=_Answer)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise JaegerUnreadable(f"{http.base_url}{path} cannot be read: {error}") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JaegerUnreadable(f"{http.base_url}{path} does not answer as a Jaeger: {error}") from error
    if decoded.errors and not decoded.data:
        raise JaegerUnreadable(f"{http.base_url}{path} answers: {decoded.errors[0].get('msg', decoded.errors[0])}")
    return decoded.data or []


def _spans(trace: _Trace) -> Iterable[Span]:
    for span in trace.spans:
        tags = _values(span.tags)
        process = trace.processes.get(span.process, _Process())
        references = span.references or []
        parents = [r.span_id for r in references if r.kind == "CHILD_OF" and r.trace_id == span.trace_id]
        is_error = tags.get(_ERROR) in (True, "true")
        yield Span(
            trace_id=span.trace_id.zfill(32),
            span_id=span.span_id.zfill(16),
            parent_id=parents[0].zfill(16) if parents else "",
            request_id=str(tags.get(REQUEST_ID, "")),
            role=process.service.removeprefix("headgate-"),
            instance=str(_values(process.tags).get("service.instance.id", "")),
            name=span.name,
            kind=str(tags.get(_KIND, "internal")),
            start_unix_ns=span.start_us * 1000,
            end_unix_ns=(span.start_us + span.duration_us) * 1000,
            error=str(tags.get(_DESCRIPTION) or "error") if is_error else "",
            attributes={name: value for name, value in tags.items() if name not in _TRANSLATED},
            events=[_event(log) for log in span.logs or []],
            links=[f"{r.trace_id.zfill(32)}-{r.span_id.zfill(16)}" for r in references if r.kind == "FOLLOWS_FROM"],
        )


def _event(log: _Log) -> SpanEvent:
    fields = _values(log.fields)
    name = str(fields.pop("event", "") or fields.pop("message", ""))
    return SpanEvent(name, log.timestamp * 1000, fields)


def _values(tags: list[_Tag] | None) -> dict[str, Scalar | list[Scalar]]:
    """Lists come as their JSON; numbers may come as texts."""
    found: dict[str, Scalar | list[Scalar]] = {}
    for tag in tags or []:
        value = tag.value
        wanted = _SCALARS.get(tag.type, str)
        if isinstance(value, str) and wanted in (int, float):
            with contextlib.suppress(ValueError):  # it stays what its sender said
                value = wanted(value)
        elif isinstance(value, str) and wanted is bool:
            value = value == "true"
        elif isinstance(value, str) and value.startswith("["):
            with contextlib.suppress(msgspec.MsgspecError):
                value = msgspec.json.decode(value, type=list[Scalar])
        found[tag.key] = value
    return found
