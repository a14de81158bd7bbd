from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from observability.errors import SpanStoreUnreadable
from observability.span_exporter import SqliteSpanExporter
from observability.span_store import REQUEST_ID, Span, SpanEvent, find_trace
from observability.span_tree import render_tree

WRITER = """
import sys
from pathlib import Path
from observability.tracing import setup_tracing
tracing = setup_tracing("role", sys.argv[2], data_dir=Path(sys.argv[1]))
for number in range(400):
    tracing.record("s", request_id="r", parent_traceparent=None, start_unix_ns=number, end_unix_ns=number)
    if number % 20 == 0:
        tracing.flush()
tracing.shutdown()
"""


def _export(exporter: SqliteSpanExporter, count: int, request: str = "r") -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    for number in range(count):
        tracer.start_span(f"s{number}", attributes={REQUEST_ID: request}, start_time=number).end(number)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three writers with many small transactions: the store has every span of each."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), f"i{number}"]) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    spans = find_trace(tmp_path, "r")
    assert {f"i{number}": sum(span.instance == f"i{number}" for span in spans) for number in range(3)} == {
        "i0": 400,
        "i1": 400,
        "i2": 400,
    }


def test_the_oldest_spans_are_trimmed(tmp_path: Path) -> None:
    """The store holds `max_spans` and at most one per cent more, and they are the newest."""
    exporter = SqliteSpanExporter(tmp_path, role="role", instance="i", max_spans=100)
    _export(exporter, 350)
    exporter.shutdown()
    spans = find_trace(tmp_path, "r")
    assert 100 <= len(spans) <= 101
    assert spans[-1].name == "s349"
    assert [span.start_unix_ns for span in spans] == list(range(350 - len(spans), 350))


def test_a_directory_that_cannot_be_written_costs_spans_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never raises into the application: the loss is counted, and said once."""
    (tmp_path / "file").write_text("")
    exporter = SqliteSpanExporter(tmp_path / "file" / "below", role="role", instance="i")
    _export(exporter, 3)
    assert exporter.dropped == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_store_that_was_locked_for_long_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of that time is lost, the next one is written."""
    monkeypatch.setattr("observability.span_exporter.BUSY_TIMEOUT_S", 0.01)
    exporter = SqliteSpanExporter(tmp_path, role="role", instance="i")
    _export(exporter, 1, "before")
    blocker = sqlite3.connect(tmp_path / "spans.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    _export(exporter, 1, "during")
    blocker.execute("ROLLBACK")
    blocker.close()
    _export(exporter, 1, "after")
    exporter.shutdown()
    assert exporter.dropped == 1
    assert [len(find_trace(tmp_path, request)) for request in ("before", "during", "after")] == [1, 0, 1]


def test_exporting_after_shutdown_fails_quietly(tmp_path: Path) -> None:
    """The last spans of a draining process may come late."""
    exporter = SqliteSpanExporter(tmp_path, role="role", instance="i")
    exporter.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE


def test_an_unknown_request_and_a_missing_store_give_nothing(tmp_path: Path) -> None:
    """Reading creates no file."""
    assert find_trace(tmp_path, "r") == []
    assert list(tmp_path.iterdir()) == []
    exporter = SqliteSpanExporter(tmp_path, role="role", instance="i")
    _export(exporter, 1, "")
    exporter.shutdown()
    assert find_trace(tmp_path, "unknown") == []
    assert find_trace(tmp_path, "") == []


def test_a_file_that_is_no_span_store_is_said_to_be_so(tmp_path: Path) -> None:
    """With the path and what SQLite says."""
    (tmp_path / "spans.db").write_bytes(b"not a database" * 100)
    with pytest.raises(SpanStoreUnreadable, match=r"spans\.db"):
        find_trace(tmp_path, "r")


def _span(name: str, span_id: str, parent: str, start_ms: float, end_ms: float, **more: object) -> Span:
    fields: dict[str, object] = {
        "trace_id": "ab" * 16,
        "span_id": span_id,
        "parent_id": parent,
        "request_id": "r-1",
        "role": "gateway",
        "instance": "g",
        "name": name,
        "kind": "internal",
        "start_unix_ns": 10**18 + int(start_ms * 1e6),
        "end_unix_ns": 10**18 + int(end_ms * 1e6),
        "error": "",
        "attributes": {},
        "events": [],
        "links": [],
    }
    return Span(**(fields | more))  # type: ignore[arg-type]


def test_the_tree_shows_nesting_offsets_durations_attributes_and_events() -> None:
    """One line a span and an event, children by start; a parent that is not stored makes a root."""
    first_token = SpanEvent("first_token", 10**18 + 42_000_000, {"index": 0})
    tree = render_tree(
        [
            _span("decode", "4", "1", 42, 100, role="scheduler", events=[first_token], attributes={"tokens": 9}),
            _span("POST", "1", "caller", 0, 101.5, attributes={REQUEST_ID: "r-1", "headgate.tenant": "gold"}),
            _span("queue", "2", "1", 1, 4.25, role="scheduler", error="worker died"),
            _span("swap", "3", "2", 2, 3, role="worker", attributes={"blocks": 0.123456, "ok": True}),
        ]
    )
    assert tree.splitlines() == [
        "request r-1  trace " + "ab" * 16 + "  101.5 ms",
        "POST                 gateway/g     +0.0  101.5 ms  tenant=gold",
        "├─ queue             scheduler/g   +1.0    3.2 ms  ERROR: worker died",
        "│  └─ swap           worker/g      +2.0    1.0 ms  blocks=0.1235 ok=yes",
        "└─ decode            scheduler/g  +42.0   58.0 ms  tokens=9",
        "      · first_token               +42.0            index=0",
    ]


def test_no_spans_no_tree() -> None:
    """The command says so in its own words."""
    assert render_tree([]) == ""


def test_spans_that_name_each_other_as_parent_do_not_hang_the_tree() -> None:
    """A store may hold anything; the walk ends."""
    assert "a" in render_tree([_span("a", "1", "", 0, 1), _span("b", "2", "2", 0, 1)])


def test_the_tree_shows_the_steps_that_a_span_links_to() -> None:
    """What is not found is counted."""
    step = _span("step", "9" * 16, "", 40, 43, trace_id="cd" * 16, attributes={"headgate.rows": 3})
    links = [f"{'cd' * 16}-{'9' * 16}", f"{'ef' * 16}-{'8' * 16}"]
    tree = render_tree([_span("decode", "1", "", 10, 100, links=links)], [step])
    assert tree.splitlines()[1:] == [
        "decode     gateway/g   +0.0  90.0 ms  links=2",
        "   ⇢ step             +30.0   3.0 ms  rows=3",
    ]
