"""The contract of a request: the tenant's within the key's ceiling, or looser, never better."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from edge_support import principal, small_model
from hypothesis import given
from hypothesis import strategies as st

from gateway.answering import Job
from gateway.chat import chat_job
from gateway.completions import completion_job
from gateway.decoding import JsonBody
from gateway.errors import ApiError, BadRequest
from gateway.openai import ChatRequest, CompletionRequest
from gateway.parameters import Parameters, check, requests
from gateway.principal import Principal
from gateway.settings import EdgeSettings
from gateway.text.tokenizer import ModelText
from policies.vocabulary import Request, Tier

MODEL = small_model()
SETTINGS = EdgeSettings()


def checked(holder: Principal, **fields: object) -> Parameters:
    """The parameters of a chat request with these fields."""
    body = msgspec.convert(
        {"model": "demo", "messages": [{"role": "user", "content": "x"}], **fields}, type=ChatRequest
    )
    return check(body, max_tokens=("max_tokens", None), logprobs=-1, model=MODEL, principal=holder, settings=SETTINGS)


@pytest.mark.parametrize(
    ("contract", "ceiling", "asked", "tier"),
    [
        ("default", None, None, Tier.default),
        ("default", None, "auto", Tier.default),
        ("default", None, "flex", Tier.flex),
        ("default", None, "priority", None),
        ("priority", None, "auto", Tier.priority),
        ("priority", None, "default", Tier.default),
        ("priority", "default", "auto", Tier.default),
        ("priority", "default", "priority", None),
        ("flex", "priority", "auto", Tier.flex),
        ("flex", None, "default", None),
    ],
)
def test_the_tier_is_the_contracts_within_the_keys_or_looser(
    contract: str, ceiling: str | None, asked: str | None, tier: Tier | None
) -> None:
    """Both bound it; a better one is a 400, not a silent change."""
    holder = replace(principal(tier=contract), tier_ceiling=ceiling)
    if tier is None:
        with pytest.raises(BadRequest, match="service_tier"):
            checked(holder, service_tier=asked)
    else:
        assert checked(holder, service_tier=asked).tier is tier


def test_flex_has_no_contract() -> None:
    """Loosening to flex gives up both promises."""
    parameters = checked(principal(ttft_ms=500.0, tpot_ms=50.0), service_tier="flex")
    assert (parameters.promise.ttft_s(1000), parameters.promise.tpot_ms) == (None, None)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (500.0, None)),
        ({"ttft_ms": 500}, (500.0, None)),
        ({"ttft_ms": 900.5}, (900.5, None)),
        ({"ttft_ms": 499}, None),
        ({"tpot_ms": 100}, None),
    ],
)
def test_times_are_the_contracts_or_looser(asked: dict[str, float], expected: tuple[float, None] | None) -> None:
    """A shorter time than the contract's, or one that it does not promise at all, is a 400."""
    holder = principal(ttft_ms=500.0)
    if expected is None:
        with pytest.raises(BadRequest, match="but the contract promises"):
            checked(holder, headgate=asked)
    else:
        parameters = checked(holder, headgate=asked)
        assert (parameters.promise.ttft_ms, parameters.promise.tpot_ms) == expected


@pytest.mark.parametrize(
    ("asked", "ttft_s"),
    [
        ({}, 1.0),
        ({"ttft_ms": 600}, 1.1),
        ({"ttft_per_1k_ms": 400}, 1.3),
        ({"ttft_ms": 600, "ttft_per_1k_ms": 400}, 1.4),
        ({"ttft_ms": 5000, "ttft_per_1k_ms": 249}, None),
        ({"ttft_per_1k_ms": 0}, None),
    ],
)
def test_a_longer_prompt_is_promised_more_time(asked: dict[str, float], ttft_s: float | None) -> None:
    """Both figures of the promise may be loosened, neither be traded against the other."""
    holder = principal(ttft_ms=500.0, ttft_per_1k_ms=250.0)
    if ttft_s is None:
        with pytest.raises(BadRequest, match="ttft_per_1k_ms"):
            checked(holder, headgate=asked)
        return
    parameters = checked(holder, headgate=asked, max_tokens=1)
    made = requests(
        parameters,
        [[5] * 2000, [5]],
        id="req-1",
        model=small_model(max_context=4096),
        principal=holder,
        settings=SETTINGS,
        elapsed_s=0.0,
        traceparent="",
        param="prompt",
    )
    base_s = parameters.promise.ttft_s(0)
    assert base_s is not None
    assert made[0].ttft_s == pytest.approx(ttft_s)
    assert made[1].ttft_s == pytest.approx(base_s + (ttft_s - base_s) / 2000)


def test_where_no_first_token_is_promised_its_length_changes_nothing() -> None:
    """Milliseconds for each 1,000 tokens are added to a promise; they are none themselves."""
    holder = principal(ttft_per_1k_ms=250.0)
    assert checked(holder).promise.ttft_s(1000) is None
    with pytest.raises(BadRequest, match="promises none"):
        checked(holder, headgate={"ttft_per_1k_ms": 300})


def test_the_deadline_is_what_is_left_of_it() -> None:
    """Time that the gateway has used is gone; never less than nothing is left."""
    holder = principal(ttft_ms=500.0)
    parameters = checked(holder)
    for elapsed_s, left_s in ((0.1, 0.4), (0.7, 0.0)):
        made = requests(
            parameters,
            [[5]],
            id="req-1",
            model=MODEL,
            principal=holder,
            settings=SETTINGS,
            elapsed_s=elapsed_s,
            traceparent="",
            param="messages",
        )
        assert made[0].ttft_s == pytest.approx(left_s)


def test_a_seed_is_drawn_where_none_is_given() -> None:
    """Two requests without a seed differ, and a seed stays in the engine's range."""
    holder = principal()
    assert checked(holder).sampling.seed != checked(holder).sampling.seed
    assert 0 <= checked(holder, seed=-(2**63)).sampling.seed < 2**63


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"])
def test_no_number_that_is_not_one_gets_through(name: str, value: float) -> None:
    """JSON has no NaN, but nothing relies on that."""
    with pytest.raises(BadRequest, match=name):
        checked(principal(), **{name: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__, "cache_salt"})
CHAT_BODY = JsonBody(ChatRequest, max_depth=32)
TEXT_BODY = JsonBody(CompletionRequest, max_depth=32)


def serve(raw: bytes, decoder: JsonBody, job_of: Callable[[Any, ModelText, EdgeSettings], Job]) -> list[Request]:
    """What the edge does with a body, up to admission."""
    holder = principal(ttft_ms=500.0)
    body = decoder.decode(raw)
    job = job_of(body, MODEL, SETTINGS)
    parameters = check(
        body, max_tokens=job.max_tokens, logprobs=job.logprobs, model=MODEL, principal=holder, settings=SETTINGS
    )
    return requests(
        parameters,
        job.tokenise(),
        id="req-1",
        model=MODEL,
        principal=holder,
        settings=SETTINGS,
        elapsed_s=0.0,
        traceparent="",
        param=job.param,
    )


@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), chat=st.booleans())
def test_any_value_in_any_field_is_served_or_refused(changes: dict[str, object], chat: bool) -> None:
    """Nothing that a client writes into a field is an exception other than an answer, and what gets through packs."""
    prompt = {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": "x"}
    raw = json.dumps({"model": "demo", **prompt, **changes}).encode()
    made: list[Request] = []
    refused: ApiError | None = None
    try:
        made = serve(raw, CHAT_BODY, chat_job) if chat else serve(raw, TEXT_BODY, completion_job)
    except ApiError as error:
        refused = error
    if refused is not None:
        assert refused.status == 400
        assert msgspec.json.decode(refused.body())["error"]["message"]
        return
    assert made
    assert all(1 <= request.max_tokens <= MODEL.max_context for request in made)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=list[Request]) == made


@given(raw=st.binary(max_size=80) | st.text('{}[]",:\\ud8train01e-', max_size=80).map(str.encode))
def test_any_bytes_are_refused_as_a_bad_request(raw: bytes) -> None:
    """Garbage is a 400, whatever it is made of."""
    with pytest.raises(BadRequest):
        serve(raw, CHAT_BODY, chat_job)
