"""How long a step takes, learned while serving.

The form is that of the published fits (DistServe, Splitwise, SlidingServe): linear in what a step computes and reads,
over a floor, the time to read the weights once:

    T = max(floor, base + per_token·tokens) + per_attended·attended + per_context·context + per_row·rows

A self-benchmark seeds it; every measured step refits it by recursive least squares on relative error, with a gain that
does not die out. Beside the mean it keeps the recent ratios actual / predicted (policies/residuals.py). Batching uses
the mean; admission the upper quantiles.
"""

from __future__ import annotations

from math import exp

from policies.residuals import Features, Ratios, Residuals
from policies.vocabulary import StepTimeCoefficients

__all__ = ["Features", "Ratios", "StepTimeModel", "step_time"]

#: How unsure a seed is, in units of the variance of a measurement: five times as far off.
_PRIOR_VARIANCE = 25.0


def step_time(coefficients: StepTimeCoefficients, tokens: float, attended: float, context: float, rows: float) -> float:
    """The mean duration of a step in seconds, by fixed coefficients."""
    c = coefficients
    dense = max(c.floor_s, c.base_s + c.per_token_s * tokens)
    return dense + c.per_attended_s * attended + c.per_context_s * context + c.per_row_s * rows


class StepTimeModel:
    """An online model of one (model, device) pair. Not thread-safe; `observe` and `predict` take about 15 µs together.

    An error is corrected by 1/`memory_steps` a step. An observation further than three
    typical errors from the prediction counts as if it were at three (Huber), so a hiccup hardly moves the fit,
    while a lasting change widens the typical error and is followed within tens of steps.
    """

    #: See `Residuals`.
    PRIOR = Residuals.PRIOR
    #: Strata by tokens in the step, from decode alone to large chunks. Each keeps its own window, so that rare large
    #: chunks are not drowned by thousands of decode steps.
    STRATA = (64, 256, 1024)

    def __init__(self, seed: StepTimeCoefficients, *, memory_steps: int = 100, window: int = 512) -> None:
        if not seed.floor_s + seed.base_s + seed.per_token_s > 0:
            raise ValueError(
                f"step time seed predicts no time at all: {seed!r}; floor, base or per_token must be positive"
            )
        self._least = 1 / memory_steps
        unit = max(seed.floor_s, seed.base_s + seed.per_token_s)
        given = (seed.floor_s, seed.base_s, seed.per_token_s, seed.per_attended_s, seed.per_context_s, seed.per_row_s)
        # Each coefficient is learned in units of its seed (or of what would matter in a typical step), so that one
        # number says how far all of them may be off.
        usual = (unit, unit, unit / 512, unit / 2**20, unit / 2**18, unit / 512)
        self._scale = tuple(g if g > 0 else u for g, u in zip(given, usual, strict=True))
        self._theta = [g / s for g, s in zip(given, self._scale, strict=True)]
        self._p = [[_PRIOR_VARIANCE if i == j else 0.0 for j in range(6)] for i in range(6)]
        # The typical relative error, tracked for each stratum: measured by that of thousands of decode steps, all that
        # rare large chunks tell would look like a hiccup.
        self._errors = [0.05] * (len(self.STRATA) + 1)
        self._residuals = Residuals(self.STRATA, window=window)

    @property
    def coefficients(self) -> StepTimeCoefficients:
        """The present fit. All coefficients are non-negative."""
        return StepTimeCoefficients(*(t * s for t, s in zip(self._theta, self._scale, strict=True)))

    @property
    def observed(self) -> int:
        """Ratios in the window: 0 means that only the seed is known."""
        return len(self._residuals)

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        """The mean duration in seconds."""
        t, s = self._theta, self._scale
        floor, dense = t[0] * s[0], t[1] * s[1] + t[2] * s[2] * tokens
        return (floor if floor > dense else dense) + t[3] * s[3] * attended + t[4] * s[4] * context + t[5] * s[5] * rows

    def predict_upper(self, tokens: float, attended: float, context: float, rows: float) -> float:
        """What nine in ten such steps stay under, in seconds, by the ratios of steps like it."""
        return (
            self.predict(tokens, attended, context, rows) * self._residuals.of_step(tokens, attended, context, rows).p90
        )

    def ratios(self, tokens: float | None = None) -> Ratios:
        """Quantiles of actual / predicted: of steps of about `tokens` tokens; of all if None or too few are known."""
        return self._residuals.of_all() if tokens is None else self._residuals.of_tokens(tokens)

    def observe(self, features: Features, actual_s: float) -> None:
        """Learn from a step that took `actual_s`. Non-positive times (a step that was skipped) are ignored."""
        predicted = self.predict(*features)
        if not 0 < actual_s < float("inf") or predicted <= 0:
            return
        ratio = actual_s / predicted
        stratum = self._residuals.add(features, ratio, predicted)
        self._refit(features, predicted, ratio - 1, stratum)

    def _refit(self, features: Features, predicted: float, error: float, stratum: int) -> None:
        tokens, attended, context, rows = features
        t, s = self._theta, self._scale
        floor, dense = t[0] * s[0], t[1] * s[1] + t[2] * s[2] * tokens
        # Which side of the max() a step speaks about: near the kink both, in parts, or the fit would stay on the side
        # that it began on.
        tilt = 10 * (floor - dense) / predicted
        memory = 1 / (1 + exp(-tilt)) if abs(tilt) < 5 else float(tilt > 0)
        x = (
            memory * s[0] / predicted,
            (1 - memory) * s[1] / predicted,
            (1 - memory) * s[2] * tokens / predicted,
            s[3] * attended / predicted,
            s[4] * context / predicted,
            s[5] * rows / predicted,
        )
        limit = 3 * self._errors[stratum]
        size = abs(error)
        weight = 1.0 if size <= limit else limit / size
        self._errors[stratum] = max(0.005, 0.97 * self._errors[stratum] + 0.03 * 1.25 * min(size, limit))

        p = self._p
        x0, x1, x2, x3, x4, x5 = x
        g = [r[0] * x0 + r[1] * x1 + r[2] * x2 + r[3] * x3 + r[4] * x4 + r[5] * x5 for r in p]
        variance = g[0] * x0 + g[1] * x1 + g[2] * x2 + g[3] * x3 + g[4] * x4 + g[5] * x5
        gain = weight / (1 + weight * variance)
        for i in range(6):
            t[i] = max(0.0, t[i] + g[i] * gain * error)
        # Forgetting that divides the covariance would blow up what is not seen for a while: hours without prompts would
        # unlearn what prompts cost. Here it never shrinks, in a direction that is met, below what keeps the memory at
        # its length, and grows along the coefficients alone: what drifts on a device is first of all its whole speed.
        least = self._least
        shrink = min(gain, (variance - least) / (variance * variance)) if variance > least else 0.0
        drift = least * least
        for i in range(6):
            row, gi, di = p[i], g[i] * shrink, t[i] * drift
            for j in range(i, 6):
                row[j] = p[j][i] = row[j] - gi * g[j] + di * t[j]
