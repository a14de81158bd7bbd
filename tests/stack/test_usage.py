"""The ledger has what workers produced, however a request ends and whatever it asked for."""

from __future__ import annotations

from openai.types.chat import ChatCompletionMessageParam
from stack_support import Stack, Tenant, counting


async def test_settled_is_what_the_answer_says(stack: Stack, tenant: Tenant) -> None:
    """Streamed, whole, of several choices, cut by length: the ledger and the `usage` of the answer agree."""
    prompt: list[ChatCompletionMessageParam] = [{"role": "user", "content": "count: 1 to 20"}]
    async with tenant.client() as client:
        streamed = await tenant.ask(client, counting(1, 20))
        whole = await client.chat.completions.create(model=stack.model, messages=prompt, temperature=0)
        several = await client.chat.completions.create(model=stack.model, messages=prompt, temperature=0, n=3)
        cut = await client.chat.completions.create(model=stack.model, messages=prompt, temperature=0, max_tokens=7)
    assert {choice.message.content for choice in (*whole.choices, *several.choices)} == {streamed.text}
    assert cut.choices[0].finish_reason == "length"
    told = [answer.usage.completion_tokens for answer in (whole, several, cut) if answer.usage]
    rows = {row["request"]: row for row in await tenant.all_settled()}
    assert len(rows) == 6
    assert sum(row["output_tokens"] for row in rows.values()) == sum(told) + streamed.output_tokens
    # Every choice reads the prompt; the answer counts it once.
    assert sum(row["prompt_tokens"] for row in rows.values()) == 6 * streamed.prompt_tokens
    assert rows[f"{streamed.request_id}-0"]["output_tokens"] == streamed.output_tokens


async def test_a_stop_string_ends_what_is_paid_for(stack: Stack, tenant: Tenant) -> None:
    """What a worker had produced beyond the stop string, two steps at most, is settled too; the text ends before it."""
    async with tenant.client() as client:
        answer = await client.chat.completions.create(
            model=stack.model,
            messages=[{"role": "user", "content": "count: 1 to 90"}],
            temperature=0,
            stop=[" 31"],
        )
    assert answer.choices[0].message.content == counting(1, 30).answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    (row,) = await tenant.all_settled()
    assert answer.usage.completion_tokens <= row["output_tokens"] < 200


async def test_a_repeated_prompt_is_found_in_the_cache(stack: Stack, tenant: Tenant) -> None:
    """The second time most of a long prompt is cached, for this tenant alone, and usage says so."""
    prompt = "copy: " + "abcdefgh" * 40
    other = stack.tenant()
    cached, prompt_tokens = [], 0
    for who in (tenant, tenant, other):
        async with who.client() as client:
            answer = await client.chat.completions.create(
                model=stack.model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=2
            )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        prompt_tokens = answer.usage.prompt_tokens
        cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[0] == 0
    assert cached[1] > prompt_tokens // 2
    assert cached[2] == 0, "tenants never share a cached prefix"
    assert sum(row["cached_tokens"] for row in await tenant.all_settled()) == cached[1]
