"""Spans of a request from a Jaeger: a local server that answers as one, by its documented format."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from headgate.__main__ import main
from observability.errors import JaegerUnreadable
from observability.jaeger import find_in_jaeger

RECORDED = (Path(__file__).parent / "recorded" / "jaeger_trace.json").read_bytes()
NOTHING = b'{"data":null,"total":0,"limit":0,"offset":0,"errors":null}'
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Jaeger:
    """Knows one trace, by its id and by the request ids of its spans."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answer: tuple[int, bytes] | None = None
        jaeger = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = jaeger.reply(self.path)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jaeger"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def reply(self, target: str) -> tuple[int, bytes]:
        path, _, rest = target.partition("?")
        query = dict(urllib.parse.parse_qsl(rest))
        self.asked.append((path, query))
        if self.answer is not None:
            return self.answer
        if path == f"/jaeger/api/traces/{TRACE}":
            return 200, RECORDED
        if path != "/jaeger/api/traces":
            return 404, b'{"data":null,"errors":[{"code":404,"msg":"trace not found"}]}'
        if int(query["start"]) >= int(query["end"]):
            return 400, b'{"data":null,"errors":[{"code":400,"msg":"bad times"}]}'
        wanted = json.loads(query["tags"])["headgate.request_id"]
        known = query["service"] == "headgate-gateway" and wanted in ("req-01", "req-02")
        return 200, RECORDED if known else NOTHING

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def jaeger() -> Iterator[Jaeger]:
    made = Jaeger()
    yield made
    made.close()


def test_the_spans_of_a_request_come_as_from_the_embedded_store(jaeger: Jaeger) -> None:
    """Ids, parents, times, attributes with their types, events, links, errors; no other request of the trace."""
    server, admission, decode = find_in_jaeger(jaeger.url, "req-01")
    assert (server.name, server.kind, server.parent_id, server.role, server.instance) == (
        "POST /v1/chat/completions",
        "server",
        "",
        "gateway",
        "g0",
    )
    assert (server.trace_id, server.request_id, server.duration_ms) == (TRACE, "req-01", 250.0)
    assert server.attributes == {
        "headgate.request_id": "req-01",
        "headgate.tenant": "gold",
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.response.finish_reasons": ["stop"],
        "headgate.late": False,
    }
    (event,) = server.events
    assert (event.name, event.unix_ns, event.attributes) == (
        "first_token",
        1763700000050000000,
        {"headgate.ttft_ms": 50.25},
    )
    assert (admission.parent_id, admission.attributes["headgate.predicted_ttft_ms"]) == (server.span_id, 48.5)
    assert (decode.span_id, decode.error) == ("00f067aa0ba90202", "its worker is gone")
    assert decode.links == ["a" * 32 + "-" + "b" * 16]


def test_the_search_is_by_the_request_id_of_the_last_days(jaeger: Jaeger) -> None:
    """A tag that all spans have; then the whole trace by its id."""
    assert find_in_jaeger(jaeger.url, "req-01")
    (path, query), (whole, _) = jaeger.asked
    assert (path, whole) == ("/jaeger/api/traces", f"/jaeger/api/traces/{TRACE}")
    assert query["service"] == "headgate-gateway"
    assert json.loads(query["tags"]) == {"headgate.request_id": "req-01"}
    assert int(query["end"]) - int(query["start"]) > 86400 * 1_000_000


def test_what_it_does_not_know_is_looked_for_with_every_service_of_ours(jaeger: Jaeger) -> None:
    """A choice of several names itself in the scheduler's spans alone."""
    assert find_in_jaeger(jaeger.url, "req-99") == []
    assert [query["service"] for _, query in jaeger.asked] == [
        "headgate-gateway",
        "headgate-scheduler",
        "headgate-admission",
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<html>"), "does not answer as a Jaeger"),
        ((500, b""), "500"),
        ((200, b'{"data":null,"errors":[{"msg":"storage is away"}]}'), "storage is away"),
    ],
)
def test_what_is_no_answer_is_said_in_one_line(jaeger: Jaeger, answer: tuple[int, bytes], words: str) -> None:
    """With the address, and what was wrong."""
    jaeger.answer = answer
    with pytest.raises(JaegerUnreadable, match=words) as raised:
        find_in_jaeger(jaeger.url, "req-01")
    assert jaeger.url in str(raised.value)


def _with(tag: str) -> bytes:
    """A trace of `req-01` whose span has the tag too."""
    span = (
        '{"traceID":"1","spanID":"2","operationName":"n","startTime":1,"duration":1,"processID":"p",'
        '"tags":[{"key":"headgate.request_id","value":"req-01"},' + tag + "]}"
    )
    return f'{{"data":[{{"traceID":"1","processes":{{}},"spans":[{span}]}}]}}'.encode()


@pytest.mark.parametrize("number", ["zz", "9" * 5000])
def test_a_number_that_is_none_stays_a_text(jaeger: Jaeger, number: str) -> None:
    """Whoever reaches the collector writes there; the rest of the trace is still shown."""
    jaeger.answer = 200, _with(f'{{"key":"x","type":"int64","value":"{number}"}}')
    assert find_in_jaeger(jaeger.url, "req-01")[0].attributes["x"] == number


def test_what_is_nested_too_deep_is_no_answer(jaeger: Jaeger) -> None:
    """It is told as any other trouble."""
    jaeger.answer = 200, _with('{"key":"x","value":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(JaegerUnreadable, match="does not answer as a Jaeger"):
        find_in_jaeger(jaeger.url, "req-01")


@pytest.mark.parametrize("answer", [(401, b""), (200, b"<html>"), (200, b'{"data":null,"errors":[{"msg":"away"}]}')])
def test_its_password_is_in_no_error(jaeger: Jaeger, answer: tuple[int, bytes]) -> None:
    """Errors go to terminals, logs and the live page."""
    jaeger.answer = answer
    for url in (jaeger.url, "http://127.0.0.1:1"):
        with pytest.raises(JaegerUnreadable) as raised:
            find_in_jaeger(url.replace("http://", "http://user:secret@"), "req-01")
        assert "secret" not in str(raised.value)


def test_the_command_does_not_tell_the_password_of_its_variable(
    jaeger: Jaeger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it finds nothing it says where it looked: the address alone."""
    jaeger.answer = 200, NOTHING
    monkeypatch.setenv("HEADGATE_JAEGER_URL", jaeger.url.replace("http://", "http://user:secret@"))
    result = CliRunner().invoke(main, ["trace", "req-1", "--wait", "0"], prog_name="headgate")
    assert result.exit_code == 1
    assert jaeger.url in result.stderr
    assert "secret" not in result.stderr


def test_an_address_that_is_none_is_said_to_be() -> None:
    """Not a traceback."""
    with pytest.raises(JaegerUnreadable, match="Invalid port"):
        find_in_jaeger("http://user:secret@[::", "req-01")


def test_the_command_prints_the_tree(jaeger: Jaeger) -> None:
    """`headgate trace --url` shows what it shows of the embedded store."""
    result = CliRunner().invoke(main, ["trace", "chatcmpl-01", "--url", jaeger.url], prog_name="headgate")
    assert result.exit_code == 0, result.output
    heading, *lines = result.stdout.splitlines()
    assert heading.startswith(f"request req-01  trace {TRACE}")
    assert [line.split()[:3] for line in lines] == [
        ["POST", "/v1/chat/completions", "gateway/g0"],
        ["│", "·", "first_token"],
        ["├─", "admission", "admission/a0"],
        ["└─", "decode", "scheduler/m-0_6B"],
        ["·", "preempted", "+90.0"],
    ]


def test_a_jaeger_that_is_not_there_is_no_traceback(tmp_path: Path) -> None:
    """Its address, and that it cannot be read."""
    made = Jaeger()
    made.close()
    result = CliRunner().invoke(main, ["trace", "req-1", "--wait", "0", "--url", made.url], prog_name="headgate")
    assert result.exit_code == 1
    assert made.url in result.stderr
