"""How much of an SLO admission holds back, so that the measured attainment of the admitted keeps its target."""

from __future__ import annotations

__all__ = ["Margin"]


class Margin:
    """An integral controller: how much of the SLO to hold back so that the attainment of the admitted keeps its target.

    Call `observe` per finished request; `value` is in [0, most]. One miss moves it by gain·target, one kept request
    back by gain·(1 - target), so it rests where the attainment is on target.
    """

    def __init__(self, target: float = 0.99, *, gain: float = 0.02, most: float = 0.3) -> None:
        self._target, self._gain, self._most = target, gain, most
        self.value = 0.0

    def observe(self, met: bool) -> None:
        """A request under contract ended, kept or missed."""
        self.value = min(self._most, max(0.0, self.value + self._gain * (self._target - met)))
