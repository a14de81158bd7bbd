"""Whatever a client sends is answered: in OpenAI's form, with the field named, and for a bounded price."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import httpx
import pytest
from edge_support import KEY, Edge, FakeFrontend, edge, principal, silent, small_model

from gateway.decoding import nesting
from gateway.settings import EdgeSettings

AUTH = {"authorization": f"Bearer {KEY}"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]

BAD_CHAT: list[tuple[dict[str, object], str]] = [
    ({"model": None}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": HI * 2000}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "ten"}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_completion_tokens": 257}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": False}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"chunks": 1}}, "stream_options.chunks"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"headgate": {"ttft_ms": 10}}, "headgate.ttft_ms"),
    ({"headgate": {"tpot_ms": 1000}}, "headgate.tpot_ms"),
    ({"headgate": {"ttft_ms": -5}}, "headgate.ttft_ms"),
    ({"headgate": {"tier": "priority"}}, "headgate.tier"),
    ({"tools": []}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"cache_salt": "x"}, "cache_salt"),
    ({"request_id": "x"}, "request_id"),
    ({"priority": 1}, "priority"),
    ({"prompt": "hi"}, "prompt"),
    ({"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
]

BAD_TEXT: list[tuple[dict[str, object], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, [2]]}, "prompt"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [3] * 256}, "prompt"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": ["a"] * 60, "n": 2}, "n"),
    ({"prompt": [5] * 250, "max_tokens": 7}, "prompt"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"messages": HI}, "messages"),
]


async def test_every_wrong_parameter_is_named() -> None:
    """A wrong value is a 400 whose `param` is the field and whose message names it; nothing reaches admission."""
    frontend = FakeFrontend(silent)
    async with (
        edge(frontend, holder=principal(ttft_ms=500.0)) as served,
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        for path, base, cases in (
            (CHAT, {"model": "demo", "messages": HI}, BAD_CHAT),
            (TEXT, {"model": "demo", "prompt": "hi"}, BAD_TEXT),
        ):
            for change, param in cases:
                answer = await client.post(path, json={**base, **change}, headers=AUTH)
                error = answer.json()["error"]
                assert answer.status_code == 400, (change, answer.text)
                assert error["type"] == "invalid_request_error"
                assert error["param"] == param, (change, error)
                assert f"`{param}" in error["message"], (change, error)
                assert error["code"] in ("invalid_value", "context_length_exceeded")
                assert answer.headers["x-request-id"].startswith("req-")
    assert frontend.requests == []


BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"{", "ends too early, at byte 1"),
    (b"not json", "invalid character (byte "),
    (b'{"model":NaN}', "byte 9"),
    (b'{"model":"demo","messages":[]} x', "byte 32"),
    (b"[]", "expected `object`, got `array`"),
    (b"7", "expected `object`, got `int`"),
    (b'{"model":"\xff"}', "not UTF-8"),
    (b'{"model":"\\ud800"}', "surrogate"),
    (b'{"model":"demo","messages":[],"temperature":1e999}', "out of range"),
    (b'{"model":"demo","messages":[],"seed":' + b"9" * 5000 + b"}", "out of range"),
    (b"[" * 100_000, "more than 32 deep"),
    (b'{"a":' * 100_000, "more than 32 deep"),
    (b'{"model":"demo","messages":' + b"[" * 33 + b"]" * 33 + b"}", "more than 32 deep"),
]


async def test_every_malformed_body_is_explained() -> None:
    """What is not JSON, not UTF-8 or nested too deep is a 400 that says where, and never a 500."""
    async with edge() as served, httpx.AsyncClient(base_url=served.url) as client:
        for body, words in BAD_BODIES:
            answer = await client.post(CHAT, content=body, headers=AUTH)
            assert answer.status_code == 400, (body[:40], answer.text)
            assert words in answer.json()["error"]["message"], (body[:40], answer.text)
        zipped = await client.post(CHAT, content=b"x", headers={**AUTH, "content-encoding": "gzip"})
    assert zipped.status_code == 400
    assert "gzip" in zipped.json()["error"]["message"]


def test_nesting_counts_brackets_outside_of_strings() -> None:
    """Brackets in strings, behind escaped quotes too, are no nesting; siblings are none either."""
    assert not nesting(json.dumps({"a": "[" * 100, "b": '\\"' + "{" * 100}).encode(), 32)
    assert not nesting(json.dumps([[]] * 1000).encode(), 2)
    assert not nesting(b"[" * 32 + b"]" * 32, 32)
    assert nesting(b"[" * 33 + b"]" * 33, 32)
    assert nesting(b'["\\\\",' * 33, 32)
    assert nesting(b"[" * 33, 32)


def test_nesting_of_a_large_body_is_cheap() -> None:
    """4 MiB of siblings are judged in well under the time that decoding them would take."""
    began = time.perf_counter()
    assert not nesting(b"[" + b"[],{}," * 700_000 + b"0]", 32)
    assert time.perf_counter() - began < 0.5


async def test_unknown_paths_and_methods_are_errors_in_json() -> None:
    """404 and 405 have OpenAI's form too, and say what there is."""
    async with edge() as served, httpx.AsyncClient(base_url=served.url) as client:
        missing = await client.get("/v2/nothing")
        wrong = await client.get(CHAT)
        embeddings = await client.post("/v1/embeddings", json={}, headers=AUTH)
        slash = await client.post(CHAT + "/", json={}, headers=AUTH)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    assert (embeddings.status_code, slash.status_code) == (404, 404)
    assert all(answer.headers["x-request-id"] for answer in (missing, wrong, embeddings))


async def test_an_unknown_model_is_not_found() -> None:
    """404 model_not_found, and no hint whether another key may use it."""
    async with edge() as served, httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.post(CHAT, json={"model": "gpt-4", "messages": HI}, headers=AUTH)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body_is_refused_without_being_read(chunked: bool) -> None:
    """413 as soon as it is known to be too large, by its length or by counting, and the client gets to read it."""
    sent = 0
    settings = EdgeSettings(max_body_bytes=1024)
    async with edge(settings=settings) as served:

        async def endless() -> object:
            nonlocal sent
            while sent < 8_000_000:
                sent += 4096
                yield b"x" * 4096

        async with httpx.AsyncClient(base_url=served.url) as client:
            if chunked:
                answer = await client.post(CHAT, content=endless(), headers=AUTH)  # type: ignore[arg-type]
            else:
                answer = await client.post(CHAT, content=b"x" * 2_000_000, headers=AUTH)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert answer.headers["connection"] == "close"


async def test_a_million_tokens_are_refused_at_once() -> None:
    """A prompt that can never fit is refused by its length, as text before it is tokenised, as ids before they are
    looked at.
    """
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served, httpx.AsyncClient(base_url=served.url) as client:
        text = b'{"model":"demo","prompt":"' + b"a b " * 1_000_000 + b'"}'
        ids = b'{"model":"demo","prompt":[' + b"5," * 1_000_000 + b"5]}"
        for body in (text, ids):
            began = time.perf_counter()
            answer = await client.post(TEXT, content=body, headers=AUTH)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"
            assert time.perf_counter() - began < 2.0
    assert frontend.requests == []


async def _raw(served: Edge, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10.0)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_what_is_not_http_gets_an_error_in_json() -> None:
    """Garbage is a 400 with OpenAI's body, and the connection is closed."""
    async with edge() as served:
        answer = await _raw(served, b"\x16\x03\x01garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_headers_are_bounded_in_bytes_and_number() -> None:
    """431 for many headers and for large ones; these are never collected in memory."""
    async with edge(settings=EdgeSettings(max_headers=50, max_header_bytes=20_000)) as served:
        many = b"".join(b"x-%d: 1\r\n" % index for index in range(60))
        answer = await _raw(served, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + many + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"too_many_headers" in answer
        large = await _raw(served, b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 30_000 + b"\r\n\r\n")
        assert large.startswith(b"HTTP/1.1 431 ")
        assert b"headers_too_large" in large


async def test_headers_and_bodies_that_do_not_come_are_given_up() -> None:
    """A connection that sends nothing, or half a body, is answered 408 and closed."""
    settings = EdgeSettings(header_timeout_s=0.2, body_timeout_s=0.2)
    async with edge(settings=settings) as served:
        assert (await _raw(served, b"POST ")).startswith(b"HTTP/1.1 408 ")
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 9\r\n\r\n"
        assert (await _raw(served, head.encode() + b"{")).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_nobody_waits_for_is_given_up_too() -> None:
    """After an early answer (no key) the rest of a body may trickle for twice the time of a body, not for ever."""
    settings = EdgeSettings(body_timeout_s=0.2)
    async with edge(settings=settings) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n".encode())
        assert b"401" in await reader.readline()
        began = asyncio.get_running_loop().time()
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and asyncio.get_running_loop().time() - began < 5:
                writer.write(b" ")
                await asyncio.sleep(0.05)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await reader.read(1000)
        assert asyncio.get_running_loop().time() - began < 2
        writer.close()


async def test_more_connections_than_allowed_are_turned_away() -> None:
    """Above the bound a connection gets a 503 at once; those that are open go on."""
    async with edge(settings=EdgeSettings(max_connections=2)) as served:
        first = await asyncio.open_connection("127.0.0.1", served.port)
        second = await asyncio.open_connection("127.0.0.1", served.port)
        for _, writer in (first, second):  # answered, so known to be accepted
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        for reader, _ in (first, second):
            assert b"200" in await reader.readline()
        third = await _raw(served, b"")
        assert third.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in third
        for _, writer in (first, second):
            writer.close()
            await writer.wait_closed()


async def test_more_requests_than_allowed_are_turned_away() -> None:
    """Above the bound a request is a 503 with a time to come back; probes are answered all the same."""
    frontend = FakeFrontend(silent, gate=asyncio.Event())
    settings = EdgeSettings(max_requests=1)
    async with edge(frontend, settings=settings) as served, httpx.AsyncClient(base_url=served.url) as client:
        first = asyncio.ensure_future(client.post(CHAT, json={"model": "demo", "messages": HI}, headers=AUTH))
        await frontend.asked.wait()
        second = await client.post(CHAT, json={"model": "demo", "messages": HI}, headers=AUTH)
        assert (second.status_code, second.json()["error"]["code"]) == (503, "overloaded")
        assert second.headers["retry-after-ms"] == "1000"
        assert (await client.get("/health")).status_code == 200
        assert frontend.gate is not None
        frontend.gate.set()
        await frontend.admitted.wait()
        frontend.generations[0].fail("over")
        assert (await first).status_code == 500


async def test_probes_need_no_key() -> None:
    """/health depends on nothing, /ready gives the reasons, /metrics and /openapi.json are there."""
    frontend = FakeFrontend(silent, reasons=["no worker for model demo"])
    async with edge(frontend) as served, httpx.AsyncClient(base_url=served.url) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.head("/health")).status_code == 200
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["no worker for model demo"])
        frontend.reasons.clear()
        assert (await client.get("/ready")).status_code == 200
        metrics = await client.get("/metrics")
        assert (metrics.text, metrics.headers["content-type"]) == ("# metrics\n", "text/plain; version=0.0.4")
        described = (await client.get("/openapi.json")).json()
    assert described["openapi"] == "3.1.0"
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "max_tokens", "headgate", "logit_bias"} <= set(fields)
    assert "cache_salt" not in fields


async def test_a_defect_is_a_500_with_the_id_to_report() -> None:
    """An exception that nobody expected is an answer in form, and its text stays in the log."""

    def broken(generation: object) -> None:
        raise RuntimeError("the secret is 42")

    async with edge(FakeFrontend(broken)) as served, httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.post(CHAT, json={"model": "demo", "messages": HI}, headers=AUTH)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text  # not "42": an id may hold that


def test_the_cheap_bound_is_no_tighter_than_the_context() -> None:
    """The longest text that fits, made of the longest token, passes the check by length."""
    model = small_model()
    longest = max(range(model.vocabulary_size), key=lambda token: len(model.token_bytes(token)))
    model.check_length([model.token_bytes(longest).decode() * model.max_context], param="prompt")
