"""The OpenAI wire format, as far as Headgate speaks it: what is taken, and what is answered.

Unknown fields are errors: what is not here is refused and named, never ignored. Ranges are checked in
`gateway/parameters.py`; types are checked by decoding. The OpenAPI document is generated from these.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatMessage",
    "ChatRequest",
    "ChunkChoice",
    "Common",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "ContractOverride",
    "Delta",
    "FinishReason",
    "Model",
    "ModelList",
    "PromptTokensDetails",
    "ServiceTier",
    "StreamOptions",
    "TextPart",
    "TierName",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

ServiceTier = Literal["auto", "default", "flex", "priority"]
FinishReason = Literal["stop", "length"]
TierName = Literal["default", "flex", "priority"]  # what a request was served as


class _In(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a client sends."""


class _Out(msgspec.Struct, kw_only=True):
    """What a client gets."""


# --- requests ---------------------------------------------------------------------------------------------------------


class StreamOptions(_In, kw_only=True, frozen=True):
    """`include_usage`: one more chunk before the end, with the usage and no choices."""

    include_usage: bool | None = None


class ContractOverride(_In, kw_only=True, frozen=True):
    """Headgate's own: this request's contract, looser than the tenant's. Milliseconds."""

    ttft_ms: float | None = None
    ttft_per_1k_ms: float | None = None
    tpot_ms: float | None = None


class TextPart(_In, tag_field="type", tag="text", kw_only=True, frozen=True):
    """One part of a message. Only text is taken."""

    text: str


class ChatMessage(_In, kw_only=True, frozen=True):
    """One turn. The last five fields are taken as null alone, so that an answer's message can be sent back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class Common(_In, kw_only=True, frozen=True):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    service_tier: ServiceTier | None = None
    headgate: ContractOverride | None = None


class ChatRequest(Common, kw_only=True, frozen=True):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(Common, kw_only=True, frozen=True):
    """Body of POST /v1/completions. `prompt`: a text, texts, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None  # true is refused: the prompt is not scored


# --- answers ----------------------------------------------------------------------------------------------------------


class PromptTokensDetails(_Out, kw_only=True):
    """`cached_tokens`: of the prompt, found in the prefix cache."""

    cached_tokens: int


class Usage(_Out, kw_only=True):
    """Tokens of one HTTP request; each prompt counts once, each choice's output too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(_Out, kw_only=True):
    """An alternative at one position. `bytes` are those of the token, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(_Out, kw_only=True):
    """The token that was chosen, and the most likely ones at its position."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Out, kw_only=True):
    """One entry a token of the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(_Out, kw_only=True):
    """Struct of arrays, one entry a token. `text_offset` counts characters from the beginning of the output."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(_Out, kw_only=True):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(_Out, kw_only=True):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Out, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    service_tier: TierName
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(_Out, kw_only=True):
    """One of the answers: prompt i, choice j is at index i * n + j."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(_Out, kw_only=True):
    """Answer of POST /v1/completions, and its chunk."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    service_tier: TierName
    choices: list[CompletionChoice]
    usage: Usage


class Delta(_Out, omit_defaults=True, kw_only=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Out, kw_only=True):
    """A choice's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(_Out, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    service_tier: TierName
    choices: list[ChunkChoice]
    usage: Usage | None = None


class Model(_Out, kw_only=True):
    """A model that this key may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_context: int


class ModelList(_Out, kw_only=True):
    """Answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]
