"""What work costs, in predicted seconds of the device."""

from __future__ import annotations

from policies.chunks import StepTime

__all__ = ["DeviceCost"]


class DeviceCost:
    """Prices by the step-time model, as it is fitted now.

    A step's fixed part (reading the weights) is shared by all that is in it: a prompt pays for its tokens as its part
    of full steps, an output as one row of a step with as many rows as decode now. So prices add up to about the time
    that the device really spends, whoever happens to run beside.
    """

    def __init__(self, step_time: StepTime, *, tokens_per_step: int) -> None:
        self._step_time = step_time
        self._full = tokens_per_step

    def prompt_s(self, tokens: int, position: int) -> float:
        """Device-seconds to compute `tokens` of a prompt from `position` on."""
        attended = tokens * (position + tokens / 2)
        return self._step_time.predict(self._full, 0.0, 0.0, 1) * tokens / self._full + (
            self._step_time.coefficients.per_attended_s * attended
        )

    def outputs_s(self, outputs: int, context: int, rows: int) -> float:
        """Device-seconds of so many outputs of a row of `context` tokens, in steps of `rows` rows."""
        step_s = self._step_time.predict(rows, 0.0, 0.0, rows)
        return outputs * (step_s / rows + self._step_time.coefficients.per_context_s * context)

    def alone_s(self, tokens: int, position: int) -> float:
        """Seconds until `tokens` of a prompt from `position` on are through, on an otherwise idle device."""
        whole, rest = divmod(max(1, tokens), self._full)
        predict = self._step_time.predict
        seconds = whole * predict(self._full, 0.0, 0.0, 1) + (predict(rest, 0.0, 0.0, 1) if rest else 0.0)
        return seconds + self._step_time.coefficients.per_attended_s * tokens * (position + tokens / 2)
