"""Text completions over a real socket, with the official client."""

from __future__ import annotations

import pytest
from edge_support import FakeFrontend, FakeGeneration, edge, saying, small_model

from policies.vocabulary import Finish, unpack_tokens

MODEL = small_model()


def echoing(generation: FakeGeneration) -> None:
    """Answers every prompt with itself."""
    generation.give([*unpack_tokens(generation.request.prompt), 1], Finish.stop)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("hello é", ["hello é"]),
        (["one", "two"], ["one", "two"]),
        (MODEL.encode(["hello"], add_special_tokens=False), ["hello"]),
        ([MODEL.encode([text], add_special_tokens=False) for text in ("one", "two")], ["one", "two"]),
    ],
)
async def test_every_form_of_prompt_is_served(prompt: object, texts: list[str]) -> None:
    """A text, texts, ids, and lists of ids; n choices of prompt i are at i * n; usage counts each prompt once."""
    async with edge(FakeFrontend(echoing), model=MODEL) as served, served.client() as client:
        answer = await client.completions.create(model="demo", prompt=prompt, n=2)
    assert [choice.text for choice in answer.choices] == [text for text in texts for _ in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(len(texts) * 2))
    lengths = [len(MODEL.encode([text], add_special_tokens=False)) for text in texts]
    assert answer.usage.prompt_tokens == sum(lengths)
    assert answer.usage.completion_tokens == 2 * sum(length + 1 for length in lengths)


async def test_a_stream_carries_texts_by_index() -> None:
    """Choices are interleaved by index, each ends with its own reason, and no chunk has a usage that nobody asked
    for.
    """
    got = {0: "", 1: ""}
    reasons = {}
    frontend = FakeFrontend(lambda g: saying(MODEL, "one two" if g.request.id.endswith("-0") else "three")(g))
    async with edge(frontend, model=MODEL) as served, served.client() as client:
        stream = await client.completions.create(model="demo", prompt=["a", "b"], stream=True)
        async for chunk in stream:
            choice = chunk.choices[0]
            got[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
            assert "usage" not in chunk.model_fields_set
    assert got == {0: "one two", 1: "three"}
    assert reasons == {0: "stop", 1: "stop"}


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_arrays_with_offsets_into_the_text(stream: bool) -> None:
    """Offsets are characters of the output, tokens of a stop string have no entry, and streamed arrays add up to
    whole ones.
    """
    tokens = MODEL.encode(["hello é world STOP more"], add_special_tokens=False)

    def script(generation: FakeGeneration) -> None:
        saying_scores = [[(token, -0.25), (token, -0.25), (7, -3.0)] for token in tokens]
        generation.give(tokens, Finish.length, saying_scores)

    text, offsets, spelled, top = "", [], [], []
    async with edge(FakeFrontend(script), model=MODEL) as served, served.client() as client:
        options = {"model": "demo", "prompt": "x", "logprobs": 2, "stop": "STOP"}
        if stream:
            chunks = [chunk async for chunk in await client.completions.create(**options, stream=True)]
        else:
            chunks = [await client.completions.create(**options)]
    for chunk in chunks:
        choice = chunk.choices[0]
        text += choice.text
        if choice.logprobs is not None:
            offsets += choice.logprobs.text_offset
            spelled += choice.logprobs.tokens
            top += choice.logprobs.top_logprobs
            assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens)
    assert text == "hello é world "
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert offsets == sorted(offsets)
    assert all(offset < len(text) for offset in offsets)
    whole = [(offset, token) for offset, token in zip(offsets, spelled, strict=True) if not token.startswith("bytes:")]
    assert all(text[offset:].startswith(token) for offset, token in whole[:-1])
    assert all(len(rivals) == 2 for rivals in top)


async def test_a_raw_prompt_may_spell_control_tokens() -> None:
    """Who writes a raw prompt could send the ids as well."""
    frontend = FakeFrontend(echoing)
    async with edge(frontend, model=MODEL) as served, served.client() as client:
        await client.completions.create(model="demo", prompt="<|im_start|>user")
    assert unpack_tokens(frontend.requests[0].prompt)[0] == 0


async def test_max_tokens_is_what_is_left_of_the_context() -> None:
    """Without max_tokens an answer may fill the context."""
    frontend = FakeFrontend(echoing)
    async with edge(frontend, model=MODEL) as served, served.client() as client:
        await client.completions.create(model="demo", prompt=[5] * 250)
        await client.completions.create(model="demo", prompt=[5] * 250, max_tokens=6)
    assert [request.max_tokens for request in frontend.requests] == [6, 6]


async def test_ignore_eos_takes_no_token_for_the_end() -> None:
    """With ignore_eos the engine gets no stop tokens, and one that is drawn is no text."""
    frontend = FakeFrontend(
        lambda generation: generation.give([1, *MODEL.encode(["a"], add_special_tokens=False), 1], Finish.length)
    )
    async with edge(frontend, model=MODEL) as served, served.client() as client:
        answer = await client.completions.create(
            model="demo", prompt="x", max_tokens=3, extra_body={"ignore_eos": True}
        )
    assert frontend.requests[0].sampling.stop_token_ids == ()
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_stop_strings_wait_for_min_tokens() -> None:
    """Within the first min_tokens outputs a stop string is text."""
    tokens = MODEL.encode(["x.y.z."], add_special_tokens=False)
    frontend = FakeFrontend(lambda generation: generation.give(tokens, Finish.length))
    async with edge(frontend, model=MODEL) as served, served.client() as client:
        answer = await client.completions.create(model="demo", prompt="x", stop=".", extra_body={"min_tokens": 2})
    assert answer.choices[0].text == "x.y"
