"""One choice of an answer: deliveries of tokens in, text with its log-probabilities out, until a stop.

A pure state machine. Text is withheld while it is half a character or may be the beginning of a stop string; the
log-probabilities of a token are withheld with its text.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.generation import Delivery, GenerationFailed
from gateway.openai import FinishReason
from gateway.text.stop import StopFinder
from gateway.text.tokenizer import ModelText
from policies.vocabulary import Finish, Request

__all__ = ["Choice", "ScoredToken"]


@dataclass(slots=True)
class ScoredToken:
    """A token with its log-probability and the most likely ones at its position; `offset` in characters of the
    output.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]
    offset: int


class Choice:
    """Feed it with `take` until `reason` is set.

    `produced` counts the tokens up to the one that ended it. `finish` is what the generation is to be closed with.
    """

    __slots__ = (
        "_decoded",
        "_detokenizer",
        "_min_tokens",
        "_pending",
        "_scored",
        "_shown",
        "_stop_ids",
        "_stops",
        "finish",
        "index",
        "produced",
        "reason",
        "scores",
    )

    def __init__(self, index: int, request: Request, model: ModelText, stop: tuple[str, ...]) -> None:
        sampling = request.sampling
        self.index = index
        self.produced = 0
        self.reason: FinishReason | None = None
        self.finish = Finish.cancelled
        self.scores: list[ScoredToken] = []  # of the text that the last `take` returned
        self._detokenizer = model.detokenizer()
        self._stops = StopFinder(stop) if stop else None
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._min_tokens = sampling.min_tokens
        self._scored = sampling.logprobs >= 0
        self._pending: list[ScoredToken] = []
        self._decoded = 0  # characters decoded, shown or withheld
        self._shown = 0

    def take(self, delivery: Delivery) -> str:
        """The text that may be shown now.

        :raises GenerationFailed: the delivery says that it ended without a result.
        """
        finish = delivery.finish
        if finish in (Finish.cancelled, Finish.error):
            raise GenerationFailed(f"the generation ended early ({finish.name})")
        tokens = delivery.tokens
        if finish is Finish.stop and tokens and tokens[-1] in self._stop_ids:
            self.produced += 1  # the stop token is counted, but is no text
            tokens = tokens[:-1]
        if self._stops is None and not self._scored:
            self.produced += len(tokens)
            text = self._detokenizer.feed(tokens)
        else:
            text = self._take_singly(tokens, delivery.logprobs)
        if self.reason is None and finish is not Finish.none:
            text += self._end(finish)
        self._shown += len(text)
        self._release()
        return text

    def _take_singly(self, tokens: list[int], logprobs: list[list[tuple[int, float]]]) -> str:
        shown = []
        for position, token in enumerate(tokens):
            if self._scored:
                scores = logprobs[position]
                self._pending.append(ScoredToken(token, scores[0][1], scores[1:], self._decoded))
            self.produced += 1
            text = self._detokenizer.feed((token,))
            self._decoded += len(text)
            if self._stops is None or self.produced <= self._min_tokens:
                shown.append(text)
                continue
            shown.append(self._stops.feed(text))
            if self._stops.found is not None:
                self.reason, self.finish = "stop", Finish.stop
                break
        return "".join(shown)

    def _end(self, finish: Finish) -> str:
        """The rest of the text, after the last token."""
        self.reason, self.finish = ("length" if finish is Finish.length else "stop"), finish
        text = self._detokenizer.finish()
        if self._stops is None:
            return text
        text = self._stops.feed(text)
        return text if self._stops.found is not None else text + self._stops.finish()

    def _release(self) -> None:
        """The scores of the tokens that begin within the text that is shown; after the end those of a stop string are
        dropped.
        """
        if not self._scored:
            return
        whole = self.reason is not None and (self._stops is None or self._stops.found is None)
        kept = next((i for i, score in enumerate(self._pending) if not whole and score.offset >= self._shown), None)
        if kept is None:
            self.scores, self._pending = self._pending, []
        else:
            self.scores, self._pending = self._pending[:kept], self._pending[kept:]
