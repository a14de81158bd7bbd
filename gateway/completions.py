"""POST /v1/completions: prompts as texts or tokens, and answers in the completion format."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.answering import Job
from gateway.choices import ScoredToken
from gateway.errors import BadRequest, ContextTooLong
from gateway.openai import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    FinishReason,
    Usage,
)
from gateway.parameters import logprobs_of_completion
from gateway.settings import EdgeSettings
from gateway.text.tokenizer import ModelText
from gateway.wire import Answer, Events, Frame, Result

__all__ = ["CompletionWire", "completion_job"]


def completion_job(body: CompletionRequest, model: ModelText, settings: EdgeSettings) -> Job:
    """What is to be done for a text completion.

    :raises BadRequest: a prompt is empty, mixed, or has ids that the model does not know.
    """
    texts, tokens = _prompts(body.prompt, model)
    count = len(texts) + len(tokens)
    if count > settings.max_choices:
        raise BadRequest(f"`prompt` has {count} prompts: at most {settings.max_choices} are taken.", param="prompt")
    for text in texts:
        model.check_length([text], param="prompt")

    def tokenise() -> list[list[int]]:
        # A raw prompt may spell special tokens: who writes it could as well send their ids.
        return tokens or [model.encode([text], add_special_tokens=True) for text in texts]

    return Job(
        param="prompt",
        max_tokens=("max_tokens", body.max_tokens),
        logprobs=logprobs_of_completion(body, settings),
        size=sum(map(len, texts)),
        tokenise=tokenise,
        id_prefix="cmpl-",
        wire=lambda answer, include_usage: CompletionWire(answer, model, include_usage=include_usage),
    )


def _prompts(prompt: str | list[str | int | list[int]], model: ModelText) -> tuple[list[str], list[list[int]]]:
    """Texts, or lists of token ids; one of both is empty."""
    given = [prompt] if isinstance(prompt, str) else prompt
    if not given or any(entry == "" or entry == [] for entry in given):
        raise BadRequest("`prompt` is empty: give a text or at least one token.", param="prompt")
    kind = type(given[0])
    for index, entry in enumerate(given):
        if type(entry) is not kind:
            raise BadRequest(f"`prompt[{index}]` is of another type than `prompt[0]`: give all alike.", param="prompt")
    if kind is str:
        return [text for text in given if isinstance(text, str)], []
    if kind is int:
        lists = [[token for token in given if isinstance(token, int)]]
    else:
        lists = [tokens for tokens in given if isinstance(tokens, list)]
    for tokens in lists:
        if len(tokens) >= model.max_context:
            raise ContextTooLong(
                f"`prompt` has {len(tokens)} tokens, the context of {model.name} is {model.max_context}.",
                param="prompt",
            )
        wrong = next((token for token in tokens if not 0 <= token < model.vocabulary_size), None)
        if wrong is not None:
            last = model.vocabulary_size - 1
            raise BadRequest(f"`prompt` has the token id {wrong}: ids are from 0 to {last}.", param="prompt")
    return [], lists


class CompletionWire(Events):
    """The completion format. A choice's last event carries its last text and the reason."""

    def __init__(self, answer: Answer, model: ModelText, *, include_usage: bool) -> None:
        super().__init__(answer, "text_completion", model, include_usage=include_usage)

    def opening(self, index: int) -> bytes:
        return b""

    def piece(self, index: int, text: str, scores: list[ScoredToken] | None) -> bytes:
        frame = self._frames.get(index)
        if frame is None:
            head = self._head + b'{"index":%d,"text":' % index
            frame = self._frames[index] = Frame(head, b',"logprobs":', b',"finish_reason":null' + self._end)
        return frame.event(text, None if scores is None else self._logprobs(scores))

    def closing(self, index: int, text: str, scores: list[ScoredToken] | None, reason: FinishReason) -> bytes:
        head = self._head + b'{"index":%d,"text":' % index
        frame = Frame(head, b',"logprobs":', b',"finish_reason":"%s"' % reason.encode() + self._end)
        return frame.event(text, None if scores is None else self._logprobs(scores))

    def whole(self, results: Sequence[Result], usage: Usage) -> bytes:
        answer = self._answer
        return msgspec.json.encode(
            Completion(
                id=answer.id,
                object="text_completion",
                created=answer.created,
                model=answer.model,
                service_tier=answer.service_tier,
                choices=[
                    CompletionChoice(
                        index=result.index,
                        text=result.text,
                        logprobs=None if result.scores is None else self._logprobs(result.scores),
                        finish_reason=result.reason,
                    )
                    for result in results
                ],
                usage=usage,
            )
        )

    def _logprobs(self, scores: list[ScoredToken]) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._spelled(score.token) for score in scores],
            token_logprobs=[score.logprob for score in scores],
            top_logprobs=[{self._spelled(token): logprob for token, logprob in score.top} for score in scores],
            text_offset=[score.offset for score in scores],
        )

    def _spelled(self, token: int) -> str:
        """A token that is no text by itself is written as its bytes, so that two of them stay apart."""
        raw = self._model.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
