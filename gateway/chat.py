"""POST /v1/chat/completions: messages to a prompt by the model's template, and answers in the chat format."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.answering import Job
from gateway.choices import ScoredToken
from gateway.errors import BadRequest
from gateway.openai import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    FinishReason,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from gateway.parameters import logprobs_of_chat
from gateway.settings import EdgeSettings
from gateway.text.chat_template import TemplateFailed
from gateway.text.tokenizer import ModelText
from gateway.wire import Answer, Events, Frame, Result

__all__ = ["ChatWire", "chat_job"]


def chat_job(body: ChatRequest, model: ModelText, settings: EdgeSettings) -> Job:
    """What is to be done for a chat request.

    :raises BadRequest: there is no message, too many, or the model has no template.
    """
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadRequest("`max_tokens` and `max_completion_tokens` are both given: give one.", param="max_tokens")
    max_tokens = ("max_tokens", body.max_tokens)
    if body.max_completion_tokens is not None:
        max_tokens = ("max_completion_tokens", body.max_completion_tokens)
    if not 1 <= len(body.messages) <= settings.max_messages:
        raise BadRequest(
            f"`messages` has {len(body.messages)} entries: it must have from 1 to {settings.max_messages}.",
            param="messages",
        )
    if model.template is None:
        raise BadRequest(f"`{model.name}` has no chat template: use /v1/completions.", param="model")
    messages = [_message(index, message) for index, message in enumerate(body.messages)]
    model.check_length([message["content"] for message in messages], param="messages")
    template = model.template

    def tokenise() -> list[list[int]]:
        try:
            parts = template.render(messages)
        except TemplateFailed as error:
            raise BadRequest(
                f"`messages` do not fit the chat template of {model.name}: {error}.", param="messages"
            ) from None
        # The template writes the special tokens itself, the one that begins a text included.
        return [model.encode(parts, add_special_tokens=False)]

    return Job(
        param="messages",
        max_tokens=max_tokens,
        logprobs=logprobs_of_chat(body, settings),
        size=sum(len(message["content"]) for message in messages),
        tokenise=tokenise,
        id_prefix="chatcmpl-",
        wire=lambda answer, include_usage: ChatWire(answer, model, include_usage=include_usage),
    )


def _message(index: int, message: ChatMessage) -> dict[str, str]:
    """As templates expect it: plain text, and `developer` under its older name."""
    content = message.content if isinstance(message.content, str) else "\n".join(part.text for part in message.content)
    if not content and message.role != "assistant":
        raise BadRequest(f"`messages[{index}].content` is empty: give some text.", param=f"messages[{index}].content")
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


class ChatWire(Events):
    """The chat format."""

    def __init__(self, answer: Answer, model: ModelText, *, include_usage: bool) -> None:
        super().__init__(answer, "chat.completion.chunk", model, include_usage=include_usage)

    def opening(self, index: int) -> bytes:
        delta = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null' % index
        return self._head + delta + self._end

    def piece(self, index: int, text: str, scores: list[ScoredToken] | None) -> bytes:
        frame = self._frames.get(index)
        if frame is None:
            head = self._head + b'{"index":%d,"delta":{"content":' % index
            frame = self._frames[index] = Frame(head, b'},"logprobs":', b',"finish_reason":null' + self._end)
        return frame.event(text, None if scores is None else self._logprobs(scores))

    def closing(self, index: int, text: str, scores: list[ScoredToken] | None, reason: FinishReason) -> bytes:
        last = self._head + b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"' % (index, reason.encode())
        return (self.piece(index, text, scores) if text or scores else b"") + last + self._end

    def whole(self, results: Sequence[Result], usage: Usage) -> bytes:
        answer = self._answer
        return msgspec.json.encode(
            ChatCompletion(
                id=answer.id,
                object="chat.completion",
                created=answer.created,
                model=answer.model,
                service_tier=answer.service_tier,
                choices=[
                    ChatChoice(
                        index=result.index,
                        message=AssistantMessage(role="assistant", content=result.text),
                        logprobs=None if result.scores is None else self._logprobs(result.scores),
                        finish_reason=result.reason,
                    )
                    for result in results
                ],
                usage=usage,
            )
        )

    def _logprobs(self, scores: list[ScoredToken]) -> ChatLogprobs:
        return ChatLogprobs(content=[self._scored(score) for score in scores])

    def _scored(self, score: ScoredToken) -> TokenLogprob:
        chosen = self._rival(score.token, score.logprob)
        return TokenLogprob(
            token=chosen.token,
            logprob=chosen.logprob,
            bytes=chosen.bytes,
            top_logprobs=[self._rival(token, logprob) for token, logprob in score.top],
        )

    def _rival(self, token: int, logprob: float) -> TopLogprob:
        raw = self._model.token_bytes(token)
        return TopLogprob(token=raw.decode(errors="replace"), logprob=logprob, bytes=list(raw))
