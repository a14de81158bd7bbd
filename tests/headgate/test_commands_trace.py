from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headgate.__main__ import main
from observability.tracing import setup_tracing

SECOND = 1_000_000_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What two processes leave of a request `req-1`."""
    gateway = setup_tracing("gateway", "g-1", data_dir=tmp_path)
    span = gateway.start_request("POST /v1/chat/completions", request_id="req-1", start_unix_ns=10 * SECOND)
    scheduler = setup_tracing("scheduler", "s-1", data_dir=tmp_path)
    scheduler.record(
        "decode",
        request_id="req-1-0",
        parent_traceparent=gateway.traceparent_of(span),
        start_unix_ns=10 * SECOND + 40_000_000,
        end_unix_ns=11 * SECOND,
        attributes={"headgate.tokens": 12},
        events=[("first_token", 10 * SECOND + 41_000_000, {})],
    )
    span.end(11 * SECOND)
    scheduler.shutdown()
    gateway.shutdown()
    return tmp_path


def _trace(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["trace", *arguments, "--data", str(data)], prog_name="headgate")


@pytest.mark.parametrize("name", ["req-1", "chatcmpl-1", "cmpl-1", "req-1-0"])
def test_the_tree_shows_what_each_process_did_and_when(data: Path, name: str) -> None:
    """Found by the x-request-id, the id of the answer, or that of one choice."""
    result = _trace(data, name)
    assert result.exit_code == 0, result.stderr
    heading, *lines = result.stdout.splitlines()
    assert heading.startswith("request req-1 ")
    assert [line.split() for line in lines] == [
        ["POST", "/v1/chat/completions", "gateway/g-1", "+0.0", "1000.0", "ms"],
        ["└─", "decode", "scheduler/s-1", "+40.0", "960.0", "ms", "tokens=12"],
        ["·", "first_token", "+41.0"],
    ]


def test_json_has_the_spans_whole(data: Path) -> None:
    """For programs: times in nanoseconds, ids, attributes, events."""
    spans = json.loads(_trace(data, "req-1", "--json").stdout)
    assert [span["name"] for span in spans] == ["POST /v1/chat/completions", "decode"]
    assert spans[1]["parent_id"] == spans[0]["span_id"]
    assert spans[1]["attributes"]["headgate.tokens"] == 12
    assert spans[1]["events"][0]["name"] == "first_token"


def test_an_unknown_request_is_one_line_and_exit_code_1(data: Path, tmp_path: Path) -> None:
    """Also where there is no store at all."""
    for directory in (data, tmp_path / "none"):
        result = _trace(directory, "req-2", "--wait", "0")
        assert result.exit_code == 1
        assert "no spans of request 'req-2'" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_store_that_is_none_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "spans.db").write_bytes(b"nonsense" * 200)
    result = _trace(tmp_path, "req-1", "--wait", "0")
    assert result.exit_code == 1
    assert "spans.db" in result.stderr


def test_what_a_span_says_does_not_steer_the_terminal(tmp_path: Path) -> None:
    """Control characters are shown and not sent: whoever reaches the collector names spans."""
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\nreq-9 all well"
    tracing = setup_tracing("gateway", "g-1", data_dir=tmp_path)
    span = tracing.start_request(evil, request_id="req-1", start_unix_ns=SECOND)
    span.set_attributes({"a": evil, evil: "b"})
    span.add_event(evil, {"c": evil})
    span.fail(evil)
    span.end(2 * SECOND)
    tracing.shutdown()
    result = _trace(tmp_path, "req-1")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 3
    assert not [one for one in result.stdout if not one.isprintable() and one != "\n"]
    assert "\\x1b]0;owned" in result.stdout
