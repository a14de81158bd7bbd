"""Spans as they are stored and read: the embedded default, so that `headgate trace REQUEST_ID` works with nothing
installed beside Headgate. Who writes them: span_exporter.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from observability.errors import SpanStoreUnreadable

__all__ = [
    "BUSY_TIMEOUT_S",
    "COLUMNS",
    "FILE",
    "REQUEST_ID",
    "Span",
    "SpanEvent",
    "find_linked",
    "find_trace",
    "of_request",
    "trace_spans",
]

#: The attribute that ties the spans of a request together, also where a caller's trace has several requests.
REQUEST_ID = "headgate.request_id"

#: Traces that are looked into for the spans that a request links to.
MOST_LINKED = 32

#: Below the data directory.
FILE = "spans.db"
BUSY_TIMEOUT_S = 5.0
COLUMNS = (
    "trace_id, span_id, parent_id, request_id, role, instance, name, kind, start_unix_ns, end_unix_ns, error, "
    "attributes, events, links"
)

Scalar = bool | int | float | str | None
Attributes = dict[str, Scalar | list[Scalar]]


class SpanEvent(msgspec.Struct, frozen=True):
    """Something that happened inside a span."""

    name: str
    unix_ns: int
    attributes: Attributes


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One finished span, as stored."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    parent_id: str  # empty: the root of its trace
    request_id: str
    role: str
    instance: str
    name: str
    kind: str  # internal | server | client | producer | consumer
    start_unix_ns: int
    end_unix_ns: int
    error: str  # description of the status ERROR; empty: none
    attributes: Attributes
    events: list[SpanEvent]
    links: list[str]  # "<trace id>-<span id>"

    @property
    def duration_ms(self) -> float:
        return (self.end_unix_ns - self.start_unix_ns) / 1e6


def find_trace(data_dir: Path | str, request_id: str) -> list[Span]:
    """All spans of a request, by start time: those that name it, those under them, those above. Empty: none (yet).

    Spans arrive up to a second after their end, each process by itself.

    :raises SpanStoreUnreadable: the file is not a span store, or is locked for longer than 5 s.
    """
    found = _select(data_dir, "(SELECT trace_id FROM spans WHERE request_id = ? AND request_id != '')", request_id)
    return of_request(found, request_id)


def trace_spans(data_dir: Path | str, trace_id: str) -> list[Span]:
    """All spans of a trace, by start time: also of one that belongs to no request, such as that of a step.

    :raises SpanStoreUnreadable: as `find_trace`.
    """
    return _select(data_dir, "(?)", trace_id)


def find_linked(data_dir: Path | str, spans: Iterable[Span]) -> list[Span]:
    """The spans that these link to, as far as they are stored: the sampled steps that a request ran in.

    :raises SpanStoreUnreadable: as `find_trace`.
    """
    wanted = {link for span in spans for link in span.links}
    traces = sorted({link.partition("-")[0] for link in wanted})[:MOST_LINKED]
    found = [one for trace in traces for one in trace_spans(data_dir, trace)]
    return [span for span in found if f"{span.trace_id}-{span.span_id}" in wanted]


def _select(data_dir: Path | str, traces: str, value: str) -> list[Span]:
    path = Path(data_dir) / FILE
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
        try:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM spans WHERE trace_id IN {traces} ORDER BY start_unix_ns, seq", (value,)
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise SpanStoreUnreadable(f"{path} cannot be read as a span store: {error}") from error
    return [_span(row) for row in rows]


def of_request(spans: list[Span], request_id: str) -> list[Span]:
    """Those that name the request, what is below them, and the way up from them.

    A caller's trace may hold other requests, which are beside them: not those. Below a request with several choices are
    spans that name a choice.
    """
    parents = {span.span_id: span.parent_id for span in spans}
    named = {span.span_id for span in spans if span.request_id == request_id}
    kept = set(named)
    while grown := {span.span_id for span in spans if span.parent_id in kept} - kept:
        kept |= grown
    for ancestor in named:
        while (ancestor := parents.get(ancestor, "")) and ancestor not in kept:
            kept.add(ancestor)
    return [span for span in spans if span.span_id in kept]


def _span(row: Sequence[str | int]) -> Span:
    plain = dict(zip(COLUMNS.split(", "), row, strict=True))
    events = msgspec.json.decode(str(plain["events"]), type=list[tuple[str, int, Attributes]])
    decoded = plain | {
        "attributes": msgspec.json.decode(str(plain["attributes"])),
        "events": [
            {"name": name, "unix_ns": unix_ns, "attributes": attributes} for name, unix_ns, attributes in events
        ],
        "links": msgspec.json.decode(str(plain["links"])),
    }
    return msgspec.convert(decoded, Span)
