"""The step-time model of a simulated scheduler: the one that serves, fed with a sample of the steps.

To learn from a step costs more than to simulate it. Steps are alike: those that only decode are observed one in
DECODE_EVERY, the others one in PROMPT_EVERY. What is observed depends on the order of steps alone, so skipping steps
changes nothing. The same sample says how well the model predicts.
"""

from __future__ import annotations

from policies.step_time import Features, Ratios, StepTimeModel, step_time
from policies.vocabulary import StepTimeCoefficients

__all__ = ["DECODE_EVERY", "PROMPT_EVERY", "SampledStepTime"]

DECODE_EVERY = 64
PROMPT_EVERY = 4


class _Known:
    """The device's own coefficients: nothing to learn, and nothing in doubt."""

    __slots__ = ("coefficients",)

    def __init__(self, coefficients: StepTimeCoefficients) -> None:
        self.coefficients = coefficients

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        return step_time(self.coefficients, tokens, attended, context, rows)

    def ratios(self, tokens: float | None = None) -> Ratios:
        return Ratios(1.0, 1.0, 1.0)

    def observe(self, features: Features, actual_s: float) -> None:
        pass


class SampledStepTime:
    """A `StepTime`. `covered` of the `judged` steps took no longer than the P90 that was predicted of them.

    :param known: `seed` is what the device really does, noise apart, and is never learned anew.
    """

    __slots__ = ("_decodes", "_model", "_prompts", "covered", "error", "judged")

    def __init__(self, seed: StepTimeCoefficients, *, known: bool = False) -> None:
        self._model: StepTimeModel | _Known = _Known(seed) if known else StepTimeModel(seed)
        self._decodes = DECODE_EVERY
        self._prompts = PROMPT_EVERY
        self.judged = 0
        self.covered = 0
        self.error = 0.0  # sum of |actual / predicted - 1|

    @property
    def coefficients(self) -> StepTimeCoefficients:
        """See `StepTime`."""
        return self._model.coefficients

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        """See `StepTime`."""
        return self._model.predict(tokens, attended, context, rows)

    def ratios(self) -> Ratios:
        """See `StepTime`."""
        return self._model.ratios()

    def observe_decodes(self, context: int, rows: int, durations_s: list[float]) -> None:
        """As `observe` for each of these steps of the same rows, one token each, the first with that context."""
        at = self._decodes - 1
        if at >= len(durations_s):
            self._decodes -= len(durations_s)
            return
        while at < len(durations_s):
            self._judge(Features(rows, 0.0, context + at * rows, rows), durations_s[at])
            at += DECODE_EVERY
        self._decodes = at - len(durations_s) + 1

    def observe(self, features: Features, actual_s: float) -> None:
        """Learn from the step, if it is in the sample."""
        if features.attended:
            self._prompts -= 1
            if self._prompts:
                return
            self._prompts = PROMPT_EVERY
        else:
            self._decodes -= 1
            if self._decodes:
                return
            self._decodes = DECODE_EVERY
        self._judge(features, actual_s)

    def _judge(self, features: Features, actual_s: float) -> None:
        predicted = self._model.predict(*features)
        if predicted > 0:
            self.judged += 1
            self.covered += actual_s <= predicted * self._model.ratios(features.tokens).p90
            self.error += abs(actual_s / predicted - 1)
        self._model.observe(features, actual_s)
