"""Chat completions over a real socket, with the official client."""

from __future__ import annotations

from edge_support import FakeFrontend, edge, saying, small_model


async def test_a_stream_carries_role_text_reason_and_done() -> None:
    """The openai client reads a stream's role, text and finish_reason, and a 200 with its request id."""
    async with edge() as served, served.client() as client:
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello world"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_an_answer_in_one_piece_has_text_and_usage() -> None:
    """Usage counts the prompt, the cached part of it, and every output with the stop token."""
    model = small_model()
    frontend = FakeFrontend(saying(model, "hello é 😀"), cached_tokens=3)
    async with edge(frontend, model=model) as served, served.client() as client:
        answer = await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "hello é 😀"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(
        model.encode(["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"], add_special_tokens=False)
    )
    assert answer.usage.completion_tokens == len(model.encode(["hello é 😀"], add_special_tokens=False)) + 1
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
