from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from observability.errors import BadLogLevel
from observability.logs import bound, setup_logs
from observability.tracing import setup_tracing


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def _lines(out: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_role_instance_and_what_is_bound(out: io.StringIO) -> None:
    """`bound` adds to every line of its block and to none after it."""
    setup_logs("gateway", "g-1", stream=out)
    log = structlog.get_logger()
    with bound(request_id="r-1", tenant="gold"):
        log.info("admitted", tokens=3)
    log.info("idle")
    first, second = _lines(out)
    assert (
        first.items()
        >= {
            "event": "admitted",
            "level": "info",
            "role": "gateway",
            "instance": "g-1",
            "request_id": "r-1",
            "tenant": "gold",
            "tokens": 3,
        }.items()
    )
    assert "timestamp" in first
    assert "request_id" not in second


def test_inside_a_span_a_line_carries_its_ids(out: io.StringIO, tmp_path: Path) -> None:
    """So that logs and traces are found from each other."""
    setup_logs("gateway", "g-1", stream=out)
    tracing = setup_tracing("gateway", "g-1", data_dir=None)
    span = tracing.start_request("POST", request_id="r")
    with tracing.current(span):
        structlog.get_logger().warning("slow")
    span.end()
    tracing.shutdown()
    (line,) = _lines(out)
    assert f"00-{line['trace_id']}-{line['span_id']}-01" == tracing.traceparent_of(span)


def test_the_standard_library_comes_out_alike(out: io.StringIO) -> None:
    """uvicorn and nats log through `logging`; exceptions are in the same line."""
    setup_logs("gateway", "g-1", stream=out)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed with %s", 7)
    (line,) = _lines(out)
    assert (line["event"], line["level"], line["logger"], line["role"]) == (
        "failed with 7",
        "error",
        "uvicorn.error",
        "gateway",
    )
    assert "ValueError: broken" in line["exception"]


def test_the_level_comes_from_the_environment(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEADGATE_LOG holds for structlog and the standard library."""
    monkeypatch.setenv("HEADGATE_LOG", "Warning")
    setup_logs("gateway", "g-1", stream=out)
    structlog.get_logger().info("no")
    logging.getLogger("nats").info("no")
    structlog.get_logger().warning("yes")
    logging.getLogger("nats").warning("yes")
    assert [line["event"] for line in _lines(out)] == ["yes", "yes"]


def test_a_level_that_is_none_is_refused(out: io.StringIO) -> None:
    """With the value and the ones that would be right."""
    with pytest.raises(BadLogLevel, match=r"'loud'.*debug, info"):
        setup_logs("gateway", "g-1", level="loud", stream=out)


def test_values_that_are_not_json_do_not_break_a_line(out: io.StringIO) -> None:
    """A log call must never be what fails a request."""
    setup_logs("gateway", "g-1", stream=out)
    structlog.get_logger().info("odd", value=object(), path=Path("/x"), exotic={1: {2}})
    assert _lines(out)[0]["event"] == "odd"


def test_a_terminal_gets_lines_for_people(out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is for machines."""
    monkeypatch.setattr(out, "isatty", lambda: True)
    setup_logs("gateway", "g-1", stream=out)
    structlog.get_logger().info("hello")
    assert "hello" in out.getvalue()
    assert not out.getvalue().startswith("{")
