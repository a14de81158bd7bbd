"""The embedded default for spans: one bounded SQLite file that all processes of a stack write at once.

So `headgate trace REQUEST_ID` works with nothing installed beside Headgate. WAL lets readers and one writer go on
together; writers wait for each other in their export threads, never in an event loop. Losing spans is allowed,
disturbing the application is not: whatever SQLite raises is counted and logged once.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from observability.errors import SpanStoreUnreadable

__all__ = ["REQUEST_ID", "Span", "SpanEvent", "SqliteSpanExporter", "find_trace", "of_request", "trace_spans"]

#: The attribute that ties the spans of a request together, also where a caller's trace has several requests.
REQUEST_ID = "headgate.request_id"

_FILE = "spans.db"
_BUSY_TIMEOUT_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
    seq INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    request_id TEXT NOT NULL,
    role TEXT NOT NULL,
    instance TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    start_unix_ns INTEGER NOT NULL,
    end_unix_ns INTEGER NOT NULL,
    error TEXT NOT NULL,
    attributes TEXT NOT NULL,
    events TEXT NOT NULL,
    links TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS spans_by_request ON spans (request_id) WHERE request_id != '';
CREATE INDEX IF NOT EXISTS spans_by_trace ON spans (trace_id);
"""
_COLUMNS = (
    "trace_id, span_id, parent_id, request_id, role, instance, name, kind, start_unix_ns, end_unix_ns, error, "
    "attributes, events, links"
)
_INSERT = f"INSERT INTO spans ({_COLUMNS}) VALUES ({', '.join('?' * 14)})"

_log = logging.getLogger(__name__)

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


class SqliteSpanExporter(SpanExporter):
    """Appends spans to `<data_dir>/spans.db` and trims the oldest beyond `max_spans` (about 0.7 KB each).

    Safe with any number of processes on one file. Never raises: `dropped` counts the spans that could not be written.
    """

    def __init__(self, data_dir: Path, *, role: str, instance: str, max_spans: int = 200_000) -> None:
        self.dropped = 0
        self._path = data_dir / _FILE
        self._role = role
        self._instance = instance
        self._max_spans = max_spans
        # Trimming one row at a time would rewrite index pages for each batch; so the file may run 1 % over and is cut
        # back.
        self._slack = max(1, max_spans // 100)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._complained = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        rows = [self._row(span) for span in spans]
        with self._lock:
            if self._closed:
                self.dropped += len(rows)
                return SpanExportResult.FAILURE
            try:
                connection = self._connect()
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(_INSERT, rows)
                    self._trim(connection)
                return SpanExportResult.SUCCESS
            except (sqlite3.Error, OSError) as error:
                self.dropped += len(rows)
                self._disconnect()
                if not self._complained:
                    self._complained = True
                    _log.warning("spans are lost: %s cannot be written (%s)", self._path, error)
                return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back: every export is committed when it returns."""
        return True

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # The batch processor exports from its thread, and from the caller's when flushing; the lock serialises
            # them.
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # In WAL this syncs at checkpoints alone: a crash of the machine may cost the last spans, not the file.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA journal_size_limit = 8388608")
                connection.execute("PRAGMA cache_size = -1024")
                connection.executescript(_SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _trim(self, connection: sqlite3.Connection) -> None:
        oldest, newest = connection.execute(
            "SELECT (SELECT min(seq) FROM spans), (SELECT max(seq) FROM spans)"
        ).fetchone()
        if newest is not None and newest - oldest >= self._max_spans + self._slack:
            connection.execute("DELETE FROM spans WHERE seq <= ?", (newest - self._max_spans,))

    def _row(self, span: ReadableSpan) -> tuple[str | int, ...]:
        attributes = span.attributes or {}
        return (
            f"{span.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
            f"{span.parent.span_id:016x}" if span.parent else "",
            str(attributes.get(REQUEST_ID, "")),
            self._role,
            self._instance,
            span.name,
            span.kind.name.lower(),
            span.start_time or 0,
            span.end_time or 0,
            "" if span.status.is_ok else span.status.description or "error",
            _json(attributes),
            _json([(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events]),
            _json([f"{link.context.trace_id:032x}-{link.context.span_id:016x}" for link in span.links]),
        )


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


def _select(data_dir: Path | str, traces: str, value: str) -> list[Span]:
    path = Path(data_dir) / _FILE
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)
        try:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM spans WHERE trace_id IN {traces} ORDER BY start_unix_ns, seq", (value,)
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
    plain = dict(zip(_COLUMNS.split(", "), row, strict=True))
    events = msgspec.json.decode(str(plain["events"]), type=list[tuple[str, int, Attributes]])
    decoded = plain | {
        "attributes": msgspec.json.decode(str(plain["attributes"])),
        "events": [
            {"name": name, "unix_ns": unix_ns, "attributes": attributes} for name, unix_ns, attributes in events
        ],
        "links": msgspec.json.decode(str(plain["links"])),
    }
    return msgspec.convert(decoded, Span)


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: object) -> object:
    """Bounded attributes of the SDK are mappings, but not dicts."""
    return dict(value) if isinstance(value, Mapping) else str(value)
