"""How much of an SLO admission holds back, so that the measured attainment of the admitted keeps its target."""

from __future__ import annotations

__all__ = ["Margin", "Margins"]


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


class Margins:
    """One margin for each promise of a tenant: holding back time to the first token keeps no pace, nor the other way.

    The scheduler steers by the pace itself, at every step, so what admission holds back of it is small; and more than
    the room between a pace and an otherwise empty step would refuse everybody.
    """

    __slots__ = ("_tpot", "_ttft")

    def __init__(self, target: float = 0.99) -> None:
        self._ttft = Margin(target)
        self._tpot = Margin(target, gain=0.005, most=0.05)

    @property
    def ttft(self) -> float:
        """Share of the time to the first token to hold back."""
        return self._ttft.value

    @property
    def tpot(self) -> float:
        """Share of the pace to hold back."""
        return self._tpot.value

    def observe(self, ttft_kept: bool | None, tpot_kept: bool | None) -> None:
        """A request under contract ended; None: that was not promised, or not put to the test."""
        if ttft_kept is not None:
            self._ttft.observe(ttft_kept)
        if tpot_kept is not None:
            self._tpot.observe(tpot_kept)
