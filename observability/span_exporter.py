"""The embedded default for spans: one bounded SQLite file that all processes of a stack write at once.

WAL lets readers and one writer go on together; writers wait for each other in their export threads, never in an event
loop. Losing spans is allowed, disturbing the application is not: whatever SQLite raises is counted and logged once.
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

from observability.span_store import BUSY_TIMEOUT_S, COLUMNS, FILE, REQUEST_ID

__all__ = ["SqliteSpanExporter"]

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
_INSERT = f"INSERT INTO spans ({COLUMNS}) VALUES ({', '.join('?' * 14)})"

_log = logging.getLogger(__name__)


class SqliteSpanExporter(SpanExporter):
    """Appends spans to `<data_dir>/spans.db` and trims the oldest beyond `max_spans` (about 0.7 KB each).

    Safe with any number of processes on one file. Never raises: `dropped` counts the spans that could not be written.
    """

    def __init__(self, data_dir: Path, *, role: str, instance: str, max_spans: int = 200_000) -> None:
        self.dropped = 0
        self._path = data_dir / FILE
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
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
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


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: object) -> object:
    """Bounded attributes of the SDK are mappings, but not dicts."""
    return dict(value) if isinstance(value, Mapping) else str(value)
