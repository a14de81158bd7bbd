"""What clients should not send, sent to the running stack: the right refusal, naming the value, and nothing worse."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from stack_support import Stack, Tenant, counting, resident_kib

_HI = [{"role": "user", "content": "3+4="}]


@pytest.fixture
async def http(stack: Stack, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    """A plain client with the tenant's key."""
    headers = {"authorization": f"Bearer {tenant.key}"}
    async with httpx.AsyncClient(base_url=f"{stack.api}/v1", headers=headers, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
async def _serves_on(stack: Stack, tenant: Tenant) -> AsyncIterator[None]:
    """After each of these tests the stack answers as before, from the same processes."""
    before = stack.pids()
    yield
    async with tenant.client() as client:
        (await tenant.ask(client, counting(5, 9))).assert_right()
    assert stack.pids() == before


def assert_refused(
    answer: httpx.Response, status: int, *, code: str, param: str | None = None, names: str = ""
) -> dict[str, Any]:
    """The status, OpenAI's error shape, the parameter and the value in the message, and an id to ask about."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req-")
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["param"] == param, error
    assert names in error["message"], error
    return error


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"", "empty"),
        (b"{", "ends too early, at byte 1"),
        (b'{"model": "headgate-demo", "stop": [}', "byte 36"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"model": "\xc3("}', "not UTF-8"),
        (b"[]", "expected `object`, got `array`"),
        (b'"text"', "expected `object`, got `str`"),
        (b'{"model": "headgate-demo", "temperature": NaN}', "byte 42"),
        (b'{"model": "headgate-demo", "temperature": Infinity}', "byte 42"),
        (b"[" * 1_000_000, "more than 32 deep"),
        (b'{"messages":' * 200_000, "more than 32 deep"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value[:12]),
)
async def test_malformed_bodies(http: httpx.AsyncClient, body: bytes, names: str) -> None:
    """What is no JSON object in UTF-8 is a 400 that says where, within a second."""
    for path in ("/chat/completions", "/completions"):
        began = time.monotonic()
        answer = await http.post(path, content=body)
        assert time.monotonic() - began < 1.0
        assert_refused(answer, 400, code="invalid_value", names=names)


async def test_wrong_parameters(stack: Stack, http: httpx.AsyncClient) -> None:
    """Wrong types, unknown fields, and values out of range: 400 with the parameter, and its value in the message."""
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"max_tokens": "ten"}, "max_tokens", '"ten"'),
        ({"max_tokens": -1}, "max_tokens", "-1"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"max_tokens": 10**18}, "max_tokens", "1000000000000000000"),
        ({"temperature": -0.5}, "temperature", "-0.5"),
        ({"temperature": "hot"}, "temperature", '"hot"'),
        ({"top_p": 0}, "top_p", "0"),
        ({"top_p": 1.5}, "top_p", "1.5"),
        ({"min_p": -1}, "min_p", "-1"),
        ({"top_k": -7}, "top_k", "-7"),
        ({"n": 0}, "n", "0"),
        ({"n": 1000}, "n", "1000"),
        ({"seed": 1.5}, "seed", "1.5"),
        ({"stop": 7}, "stop", "7"),
        ({"stream": "yes"}, "stream", '"yes"'),
        ({"presence_penalty": 9}, "presence_penalty", "9"),
        ({"frequency_penalty": -9}, "frequency_penalty", "-9"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0"),
        ({"logit_bias": {"1": 1000}}, "logit_bias", "1000"),
        ({"service_tier": "gold"}, "service_tier", '"gold"'),
        ({"messages": "hello"}, "messages", '"hello"'),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role", '"alien"'),
        ({"temprature": 1}, "temprature", "temprature"),
        ({"cache_salt": "x"}, "cache_salt", "cache_salt"),
        ({"tools": []}, "tools", "tools"),
    ]
    for change, param, names in cases:
        answer = await http.post("/chat/completions", json={"model": stack.model, "messages": _HI} | change)
        error = assert_refused(answer, 400, code="invalid_value", param=param, names=names)
        assert error["type"] == "invalid_request_error"
    body = b'{"model": "headgate-demo", "messages": [], "temperature": 1e999}'
    answer = await http.post("/chat/completions", content=body)
    assert_refused(answer, 400, code="invalid_value", param="temperature", names="out of range")


async def test_empty_prompts(stack: Stack, http: httpx.AsyncClient) -> None:
    """A prompt without a token is a 400, in all its forms."""
    prompts: list[Any] = ["", [], [[]], ["a", ""]]
    for prompt in prompts:
        answer = await http.post("/completions", json={"model": stack.model, "prompt": prompt})
        assert_refused(answer, 400, code="invalid_value", param="prompt")
    answer = await http.post("/chat/completions", json={"model": stack.model, "messages": []})
    assert_refused(answer, 400, code="invalid_value", param="messages")


async def test_unknown_models_and_paths(http: httpx.AsyncClient) -> None:
    """404, each with its own code."""
    answer = await http.post("/chat/completions", json={"model": "gpt-99", "messages": _HI})
    assert_refused(answer, 404, code="model_not_found", param="model", names="gpt-99")
    assert_refused(await http.get("/models/gpt-99"), 404, code="model_not_found", param="model", names="gpt-99")
    assert_refused(await http.post("/embeddings", json={}), 404, code="not_found", names="/v1/embeddings")
    assert_refused(await http.get("/chat/completions"), 405, code="method_not_allowed", names="POST")


@pytest.mark.parametrize("chunked", [False, True])
async def test_huge_bodies(stack: Stack, http: httpx.AsyncClient, chunked: bool) -> None:
    """64 MiB, declared or in chunks: a 413 that can be read, and the gateway never holds it."""
    before = resident_kib(stack.pid("gateway"))
    piece = b"x" * 65_536

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield piece

    headers = {} if chunked else {"content-length": str(1024 * len(piece))}
    answer = await http.post("/chat/completions", content=pieces(), headers=headers)
    assert_refused(answer, 413, code="request_too_large", names="4194304")
    assert resident_kib(stack.pid("gateway")) < before + 16_000


async def test_a_million_tokens(stack: Stack, http: httpx.AsyncClient) -> None:
    """A prompt that can never fit is refused within a second, as text and as ids, without growing the gateway."""
    before = resident_kib(stack.pid("gateway"))
    bodies: list[tuple[str, str, str]] = [
        ("/completions", json.dumps({"model": stack.model, "prompt": "a b " * 1_000_000}), "prompt"),
        ("/completions", json.dumps({"model": stack.model, "prompt": [5] * 1_000_000}), "prompt"),
        (
            "/chat/completions",
            json.dumps({"model": stack.model, "messages": [{"role": "user", "content": "1 " * 1_000_000}]}),
            "messages",
        ),
    ]
    for path, body, param in bodies:
        began = time.monotonic()
        answer = await http.post(path, content=body.encode())
        assert time.monotonic() - began < 1.5
        assert_refused(answer, 400, code="context_length_exceeded", param=param, names="2048")
    assert resident_kib(stack.pid("gateway")) < before + 48_000


async def test_a_prompt_that_nearly_fits(stack: Stack, tenant: Tenant) -> None:
    """The context counts prompt and output: one token too many is named, and what just fits is served."""
    async with tenant.client() as client:
        with pytest.raises(openai.BadRequestError, match="2048") as refused:
            await client.completions.create(model=stack.model, prompt=[5] * 2000, max_tokens=49)
        assert refused.value.code == "context_length_exceeded"
        answer = await client.completions.create(
            model=stack.model, prompt=[5] * 2000, max_tokens=48, extra_body={"ignore_eos": True}
        )
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2000, 48)


async def test_what_is_not_http(stack: Stack) -> None:
    """Garbage and half a request get an answer or an end, and hold nothing up."""
    host, _, port = stack.api.removeprefix("http://").partition(":")
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / SPDY/9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
        writer.close()
        await writer.wait_closed()


async def test_many_bad_requests_at_once(stack: Stack, http: httpx.AsyncClient, tenant: Tenant) -> None:
    """While a hundred bad requests are refused, good ones are answered right."""
    bad = [{"model": stack.model, "messages": _HI, "n": -index} for index in range(100)]
    async with tenant.client() as client:
        good = [tenant.ask(client, counting(first, first + 9)) for first in range(1, 5)]
        refused, answers = await asyncio.gather(
            asyncio.gather(*(http.post("/chat/completions", json=body) for body in bad)), asyncio.gather(*good)
        )
    for index, answer in enumerate(refused):
        assert_refused(answer, 400, code="invalid_value", param="n", names=str(-index))
    for right in answers:
        right.assert_right()
