"""Chat completions over a real socket, with the official client."""

from __future__ import annotations

import math

import openai
import pytest
from edge_support import FakeFrontend, FakeGeneration, edge, principal, saying, silent, small_model

from actors.messages import Decision, Quota
from gateway.settings import EdgeSettings
from policies.vocabulary import Finish, unpack_tokens

HI = [{"role": "user", "content": "hi"}]


async def test_a_stream_carries_role_text_reason_and_done() -> None:
    """The openai client reads a stream's role first, its text, and its finish_reason last."""
    async with edge() as served, served.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello world"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_the_raw_stream_is_events_ended_by_done() -> None:
    """An event stream has its headers, one `data:` line an event, `[DONE]` last, and the role in its first event."""
    async with (
        edge() as served,
        served.client() as client,
        client.chat.completions.with_streaming_response.create(model="demo", messages=HI, stream=True) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"].startswith("req-")
        events = (await answer.read()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert '"delta":{"role":"assistant","content":""}' in events[0]
    assert '"usage"' not in events[0]


async def test_the_first_token_is_written_before_the_second_exists() -> None:
    """A token is on the wire as soon as it is delivered, not when the answer is over."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served, served.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
        generation = frontend.generations[0]
        for text in "ab":
            generation.give(served.model.encode([text], add_special_tokens=False))
            while not (chunk := await anext(stream)).choices[0].delta.content:
                pass
            assert chunk.choices[0].delta.content == text
        generation.give([1], Finish.stop)
        assert [chunk.choices[0].finish_reason async for chunk in stream] == ["stop"]


async def test_usage_is_streamed_where_it_is_asked_for() -> None:
    """With include_usage one more chunk has the usage and no choices, and every other one has `usage: null`."""
    model = small_model()
    async with (
        edge(FakeFrontend(saying(model, "hi"), cached_tokens=2), model=model) as served,
        served.client() as client,
    ):
        stream = await client.chat.completions.create(
            model="demo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all("usage" in chunk.model_fields_set for chunk in chunks)
    assert chunks[-1].choices == []
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(model.encode(["hi"], add_special_tokens=False)) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 2


async def test_an_answer_in_one_piece_has_text_and_usage() -> None:
    """Usage counts the prompt as the template renders it, and every output with the stop token."""
    model = small_model()
    async with edge(FakeFrontend(saying(model, "hello é 😀")), model=model) as served, served.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=HI)
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.choices[0].message.content == "hello é 😀"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(model.encode([prompt], add_special_tokens=False))
    assert answer.usage.completion_tokens == len(model.encode(["hello é 😀"], add_special_tokens=False)) + 1


async def test_an_answer_can_be_sent_back_as_a_message() -> None:
    """The message of an answer, nulls included, is valid input for the next turn."""
    async with edge() as served, served.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=HI)
        turn = answer.choices[0].message.model_dump()
        again = await client.chat.completions.create(model="demo", messages=[*HI, turn, *HI])
    assert again.choices[0].message.content == "hello world"


@pytest.mark.parametrize("stream", [False, True])
async def test_every_choice_has_its_own_seed_and_text(stream: bool) -> None:
    """n choices are n requests with seed, seed + 1, …, and their texts do not mix, streamed or not."""
    model = small_model()
    texts = ["hello", "one two three", "é 日本"]

    def script(generation: FakeGeneration) -> None:
        saying(model, texts[int(generation.request.id.rpartition("-")[2])])(generation)

    frontend = FakeFrontend(script)
    got = ["", "", ""]
    async with edge(frontend, model=model) as served, served.client() as client:
        if stream:
            async for chunk in await client.chat.completions.create(
                model="demo", messages=HI, n=3, seed=41, stream=True
            ):
                got[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        else:
            answer = await client.chat.completions.create(model="demo", messages=HI, n=3, seed=41)
            got = [choice.message.content or "" for choice in answer.choices]
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(unpack_tokens(frontend.requests[0].prompt))
    assert got == texts
    assert sorted(request.sampling.seed for request in frontend.requests) == [41, 42, 43]
    ids = sorted(request.id for request in frontend.requests)
    assert [one.rpartition("-")[2] for one in ids] == ["0", "1", "2"]


async def test_all_choices_are_admitted_or_none() -> None:
    """If one of n choices is refused, the answer is the refusal, and the admitted ones are closed."""

    def decide(request: object) -> Decision:
        if str(getattr(request, "id", "")).endswith("-1"):
            return Decision(outcome="refused", reason="concurrency", message="3 of 2 under way", retry_after_s=0.25)
        return Decision(outcome="admitted")

    frontend = FakeFrontend(silent, decide)
    async with edge(frontend) as served, served.client() as client:
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="demo", messages=HI, n=3)
    assert refused.value.code == "rate_limit_exceeded"
    assert frontend.generations
    assert all(generation.closed_with for generation in frontend.generations)


async def test_logprobs_are_those_of_the_tokens_of_the_text() -> None:
    """Chat log-probabilities name each token, its bytes and its rivals; bytes of half characters add up to the text."""
    model = small_model()
    tokens = model.encode(["hi 😀"], add_special_tokens=False)

    def script(generation: FakeGeneration) -> None:
        scores = [[(token, -0.5), (token, -0.5), (5, -2.0)] for token in [*tokens, 1]]
        generation.give([*tokens, 1], Finish.stop, scores)

    frontend = FakeFrontend(script)
    async with edge(frontend, model=model) as served, served.client() as client:
        answer = await client.chat.completions.create(
            model="demo", messages=HI, logprobs=True, top_logprobs=2, temperature=0
        )
    assert frontend.requests[0].sampling.logprobs == 2
    scored = answer.choices[0].logprobs
    assert scored is not None
    assert scored.content is not None
    assert bytes(byte for entry in scored.content for byte in entry.bytes or []).decode() == "hi 😀"
    assert [entry.logprob for entry in scored.content] == [-0.5] * len(tokens)
    assert all(len(entry.top_logprobs) == 2 for entry in scored.content)


async def test_a_stop_string_across_tokens_ends_the_answer() -> None:
    """The text ends before the stop string, the reason is stop, and the generation is closed as stopped at once."""
    model = small_model()
    frontend = FakeFrontend(saying(model, "one two three four five", finish=Finish.length))
    async with edge(frontend, model=model) as served, served.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True, stop=["o thr", "never"])
        chunks = [chunk async for chunk in stream]
        await frontend.generations[0].closed.wait()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one tw"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert frontend.generations[0].closed_with == [Finish.stop]


async def test_length_is_told_and_closed_with() -> None:
    """A generation that used up max_tokens ends with `length`, and half a character at its end is U+FFFD."""
    model = small_model()
    half = model.encode(["a😀"], add_special_tokens=False)[:-1]
    frontend = FakeFrontend(lambda generation: generation.give(half, Finish.length))
    async with edge(frontend, model=model) as served, served.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=HI, max_tokens=len(half))
        await frontend.generations[0].closed.wait()
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "a�"
    assert frontend.requests[0].max_tokens == len(half)
    assert frontend.generations[0].closed_with == [Finish.length]


async def test_a_failure_in_mid_stream_is_an_error_event_without_done() -> None:
    """After the first byte a failure can only be an event; the client raises it and does not take the text as whole."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served, served.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True)
        generation = frontend.generations[0]
        generation.give(served.model.encode(["a"], add_special_tokens=False))
        assert (await anext(stream)).choices
        generation.fail("the worker is gone")
        with pytest.raises(openai.APIError, match="the worker is gone"):
            async for _ in stream:
                pass
        await generation.closed.wait()
    assert generation.closed_with == [Finish.error]


async def test_a_failure_of_one_choice_ends_all() -> None:
    """Choices stand or fall together: the others are closed when one fails."""
    frontend = FakeFrontend(silent)
    async with edge(frontend) as served, served.client() as client:
        stream = await client.chat.completions.create(model="demo", messages=HI, stream=True, n=2)
        frontend.generations[1].fail("no")
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
        for generation in frontend.generations:
            await generation.closed.wait()


async def test_a_failure_without_a_stream_is_a_500() -> None:
    """Without a stream the failure is the status."""
    frontend = FakeFrontend(lambda generation: generation.fail("the worker is gone"))
    async with edge(frontend) as served, served.client() as client:
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="demo", messages=HI)
    assert failed.value.status_code == 500
    assert failed.value.code == "generation_failed"


REFUSALS = [
    ("requests_per_minute", 1.5, 429, "rate_limit_error", "rate_limit_exceeded", "2", "1500", None),
    ("concurrency", None, 429, "rate_limit_error", "rate_limit_exceeded", None, None, "false"),
    ("daily_budget", 7200.0, 429, "insufficient_quota", "insufficient_quota", "7200", "7200000", "false"),
    ("ttft_unattainable", 0.0421, 503, "service_unavailable_error", "sla_unattainable", "1", "43", None),
    ("deadline_exceeded", 3.0, 503, "service_unavailable_error", "deadline_exceeded", "3", "3000", None),
    ("no_worker", 300.0, 503, "service_unavailable_error", "model_not_ready", "300", "300000", "false"),
    ("brand_new", 1.0, 503, "service_unavailable_error", "brand_new", "1", "1000", None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("reason", "after", "status", "kind", "code", "seconds", "ms", "again"), REFUSALS)
async def test_a_refusal_is_a_status_with_a_time_to_come_back(
    reason: str,
    after: float | None,
    status: int,
    kind: str,
    code: str,
    seconds: str | None,
    ms: str | None,
    again: str | None,
    stream: bool,
) -> None:
    """Streamed or not, a refusal has the table's status, type and code, and says when to come back, or not to."""
    refusal = Decision(outcome="refused", reason=reason, message="because", retry_after_s=after)
    async with edge(FakeFrontend(silent, lambda request: refusal)) as served, served.client() as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(model="demo", messages=HI, stream=stream)
    error = raised.value
    assert (error.status_code, error.type, error.code, error.body["message"]) == (status, kind, code, "because")  # type: ignore[index]
    headers = error.response.headers
    assert (headers.get("retry-after"), headers.get("retry-after-ms")) == (seconds, ms)
    assert headers.get("x-should-retry") == again
    assert headers["x-headgate-decision"] == "refused"
    assert error.request_id is not None


async def test_the_client_retries_after_the_time_it_was_told() -> None:
    """The SDK comes back by itself after retry-after-ms, and its retry count reaches admission."""
    decisions = [
        Decision(outcome="refused", reason="ttft_unattainable", retry_after_s=0.01),
        Decision(outcome="admitted"),
    ]
    model = small_model()
    frontend = FakeFrontend(saying(model, "hi"), lambda request: decisions.pop(0))
    async with edge(frontend, model=model) as served, served.client(max_retries=2) as client:
        answer = await client.chat.completions.create(model="demo", messages=HI)
    assert answer.choices[0].message.content == "hi"
    assert [call["retries"] for call in frontend.calls] == [0, 1]


async def test_the_answer_says_what_was_decided() -> None:
    """Decision, prediction, deadline, queue time, quota and trace context are on the answer."""
    decision = Decision(
        outcome="admitted",
        predicted_ttft_s=0.0875,
        deferred_s=0.25,
        quota=Quota(
            requests_limit=60,
            requests_left=-3,
            requests_reset_s=360.0,
            tokens_limit=1000,
            tokens_left=900,
            tokens_reset_s=0.012,
        ),
    )
    model = small_model()
    frontend = FakeFrontend(saying(model, "hi"), lambda request: decision)
    trace = "0af7651916cd43dd8448eb211c80319c"
    holder = principal(ttft_ms=500.0, ttft_per_1k_ms=20_000.0)
    async with edge(frontend, model=model, holder=holder) as served, served.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="demo", messages=HI, extra_headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        )
    headers = raw.headers
    assert headers["x-headgate-decision"] == "deferred"
    assert headers["x-headgate-queue-ms"] == "250.000"
    assert headers["x-headgate-predicted-ttft-ms"] == "87.5"
    prompt_tokens = len(frontend.requests[0].prompt) // 4
    assert float(headers["x-headgate-deadline-ms"]) == 500 + 20 * prompt_tokens
    assert float(headers["x-headgate-overhead-ms"]) >= 0.0
    assert int(headers["openai-processing-ms"]) >= 0
    assert headers["x-ratelimit-limit-requests"] == "60"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "6m0s"
    assert headers["x-ratelimit-remaining-tokens"] == "900"
    assert headers["x-ratelimit-reset-tokens"] == "12ms"
    assert headers["traceparent"].split("-")[1] == trace
    assert frontend.requests[0].traceparent == headers["traceparent"]


async def test_the_request_behind_is_what_was_asked_and_promised() -> None:
    """Sampling, contract, salt and identity reach the seam; the deadline is what is left of it."""
    frontend = FakeFrontend(lambda generation: generation.give([1], Finish.stop))
    holder = principal(tier="priority", ttft_ms=500.0, tpot_ms=50.0)
    settings = EdgeSettings(gateway="gateway-7", default_max_tokens=100)
    async with edge(frontend, holder=holder, settings=settings) as served, served.client() as client:
        answer = await client.chat.completions.create(
            model="demo",
            messages=HI,
            temperature=0.5,
            top_p=0.9,
            presence_penalty=1.0,
            frequency_penalty=-1.0,
            logit_bias={"5": -100},
            seed=-1,
            service_tier="default",
            user="someone",
            extra_body={
                "top_k": 40,
                "min_p": 0.1,
                "repetition_penalty": 1.2,
                "min_tokens": 3,
                "headgate": {"ttft_ms": 2000, "tpot_ms": 50},
            },
        )
    request = frontend.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.0, -1.0, 1.2)
    assert sampling.logit_bias == ((5, -100.0),)
    assert sampling.seed == 2**63 - 1
    assert sampling.min_tokens == 3
    assert sampling.stop_token_ids == (1,)
    assert (request.tenant, request.model, request.gateway) == ("acme", "demo", "gateway-7")
    assert request.salt == b"salt-of-acme"
    assert request.max_tokens == 100
    assert request.tier == 1
    assert request.ttft_s is not None
    assert 1.0 < request.ttft_s < 2.0
    assert request.tpot_s is not None
    assert math.isclose(request.tpot_s, 0.05)
    assert answer.service_tier == "default"


async def test_patience_ends_with_the_clients() -> None:
    """Nobody waits longer for admission than the client's own read timeout."""
    frontend = FakeFrontend(lambda generation: generation.give([1], Finish.stop))
    async with edge(frontend) as served, served.client(timeout=7.0) as client:
        await client.chat.completions.create(model="demo", messages=HI)
    patience_s = frontend.calls[0]["patience_s"]
    assert isinstance(patience_s, float)
    assert 0.0 < patience_s <= 7.0


async def test_models_are_those_of_the_key() -> None:
    """The list has what the key may use, a model is shown by name, and another is not found."""
    async with edge() as served, served.client() as client:
        assert [model.id async for model in client.models.list()] == ["demo"]
        assert (await client.models.retrieve("demo")).created == 1_700_000_000
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"


async def test_a_bad_key_is_told_so_everywhere() -> None:
    """401 with invalid_api_key, and no retry, on generations and on the list of models alike."""
    async with edge() as served, served.client(api_key="sk-wrong", max_retries=2) as client:
        for call in (client.models.list(), client.chat.completions.create(model="demo", messages=HI)):
            with pytest.raises(openai.AuthenticationError) as denied:
                await call
            assert denied.value.code == "invalid_api_key"
            assert "sk-wrong" not in str(denied.value)
    assert served.frontend.requests == []
