"""How much of an SLO admission holds back, so that the measured attainment of the admitted keeps its target."""

from __future__ import annotations

from collections import OrderedDict

from policies.vocabulary import Contract, Tier

__all__ = ["Margin", "MarginBook", "Margins"]


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
        self._tpot = Margin(target, gain=0.01, most=0.1)

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


class MarginBook:
    """The margins of every tenant (the last `tenants` that ended a request), and of every tier.

    What makes promises break is mostly common to all, and a tier learns it from all of its tenants, long before each of
    them has seen enough by itself. The larger of both is held back.
    """

    def __init__(self, *, tenants: int = 4096) -> None:
        self._most = tenants
        self._tenants: OrderedDict[str, Margins] = OrderedDict()
        self._tiers: dict[int, Margins] = {}

    def observe(self, tenant: str, contract: Contract | None, ttft_kept: bool | None, tpot_kept: bool | None) -> None:
        """A request of `tenant` ended; see `Margins.observe`."""
        if ttft_kept is None and tpot_kept is None:
            return
        contract = contract or Contract()
        own = self._tenants.get(tenant)
        if own is None:
            own = self._tenants[tenant] = Margins(contract.attainment)
            if len(self._tenants) > self._most:
                self._tenants.popitem(last=False)
        self._tenants.move_to_end(tenant)
        tier = Tier[contract.tier]
        for margins in (own, self._tiers.setdefault(tier, Margins(contract.attainment))):
            margins.observe(ttft_kept, tpot_kept)

    def of(self, tenant: str, tier: int) -> tuple[float, float]:
        """Shares of the time to the first token and of the pace to hold back."""
        kept = [margins for margins in (self._tenants.get(tenant), self._tiers.get(tier)) if margins is not None]
        return max((m.ttft for m in kept), default=0.0), max((m.tpot for m in kept), default=0.0)
