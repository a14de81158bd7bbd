"""How an answer is written: the part in which the two endpoints differ.

A chunk of a stream is a fixed prefix and suffix around the text, encoded once a choice, because a structure encoded
anew costs five times as much a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.choices import ScoredToken
from gateway.openai import FinishReason, PromptTokensDetails, TierName, Usage
from gateway.text.tokenizer import ModelText

__all__ = ["DONE", "Answer", "Events", "Frame", "Result", "Wire", "usage_of"]

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What all chunks of one answer have in common."""

    id: str
    created: int
    model: str
    service_tier: TierName


@dataclass(slots=True)
class Result:
    """A finished choice of an answer that is not streamed."""

    index: int
    text: str
    scores: list[ScoredToken] | None
    reason: FinishReason


class Events:
    """The events of one streamed answer: what stands before and after the choice in each, and the one with usage."""

    def __init__(self, answer: Answer, kind: str, model: ModelText, *, include_usage: bool) -> None:
        self._answer = answer
        self._model = model
        encode = msgspec.json.encode
        self._head = (
            b'data: {"id":'
            + encode(answer.id)
            + b',"object":"%s","created":%d' % (kind.encode(), answer.created)
            + b',"model":'
            + encode(answer.model)
            + b',"service_tier":'
            + encode(answer.service_tier)
            + b',"choices":['
        )
        self._end = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._frames: dict[int, Frame] = {}

    def usage(self, usage: Usage) -> bytes:
        """See `Wire.usage`."""
        return self._head + b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"


class Wire(Protocol):
    """Writes one answer in an endpoint's format. `scores` is None where no log-probabilities were asked for."""

    def opening(self, index: int) -> bytes:
        """Before a choice's first text; may be empty."""
        ...

    def piece(self, index: int, text: str, scores: list[ScoredToken] | None) -> bytes:
        """An event with text."""
        ...

    def closing(self, index: int, text: str, scores: list[ScoredToken] | None, reason: FinishReason) -> bytes:
        """The last event or events of a choice, with the rest of its text."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The event with the usage and no choices."""
        ...

    def whole(self, results: Sequence[Result], usage: Usage) -> bytes:
        """The answer in one piece, as JSON."""
        ...


class Frame:
    """The constant parts of one choice's text events: `head` text `tail`, or `head` text `scored` logprobs
    `scored_tail`.
    """

    __slots__ = ("_encode", "_head", "_plain_tail", "_scored_tail", "_seam")

    def __init__(self, head: bytes, seam: bytes, tail: bytes) -> None:
        """`seam` is what stands between the text and the value of `logprobs`, `tail` what follows that value."""
        self._head = head
        self._seam = seam
        self._scored_tail = tail
        self._plain_tail = seam + b"null" + tail
        self._encode = msgspec.json.Encoder().encode

    def event(self, text: str, logprobs: object = None) -> bytes:
        """One event of the stream."""
        if logprobs is None:
            return self._head + self._encode(text) + self._plain_tail
        return self._head + self._encode(text) + self._seam + self._encode(logprobs) + self._scored_tail


def usage_of(prompt: int, output: int, cached: int) -> Usage:
    """The usage of an answer, in tokens."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )
