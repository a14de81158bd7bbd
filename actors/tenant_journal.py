"""Each tenant's last five minutes: what was decided of its requests, and how its contract was kept.

In periods of five seconds. Sums over all of them are kept up to date as periods come and go, so that a look at a tenant
costs what is shown of it, however much it has asked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from math import ceil, exp, log

from actors.messages import TenantFacts

__all__ = ["PERIODS", "PERIOD_S", "TenantJournal"]

PERIOD_S = 5.0
PERIODS = 60
#: Times are counted in bins, each so much wider than the one before: a quantile is off by at most half of that.
_BIN = log(1.05)
_LEAST_S = 1e-6


class _Figure:
    """One promise: how many were judged and kept, and the times that were measured, by bin."""

    __slots__ = ("bins", "judged", "kept")

    def __init__(self) -> None:
        self.judged = 0
        self.kept = 0
        self.bins: Counter[int] = Counter()

    def add(self, seconds: float | None, kept: bool | None) -> None:
        if seconds is not None:
            self.bins[round(log(max(seconds, _LEAST_S)) / _BIN)] += 1
        if kept is not None:
            self.judged += 1
            self.kept += kept

    def take_away(self, older: _Figure) -> None:
        self.judged -= older.judged
        self.kept -= older.kept
        for at, count in older.bins.items():
            self.bins[at] -= count
            if not self.bins[at]:
                del self.bins[at]

    def facts(self) -> tuple[int, int, float | None, float | None]:
        return self.judged, self.kept, self._quantile(0.5), self._quantile(0.95)

    def _quantile(self, share: float) -> float | None:
        left = ceil(share * self.bins.total())
        for at in sorted(self.bins):
            left -= self.bins[at]
            if left <= 0:
                return exp(at * _BIN)
        return None


class _Period:
    """Sums, of a period or of all."""

    __slots__ = ("admitted", "deferred", "number", "refused", "tpot", "ttft")

    def __init__(self, number: int) -> None:
        self.number = number
        self.admitted = 0
        self.deferred = 0
        self.refused: Counter[str] = Counter()
        self.ttft = _Figure()
        self.tpot = _Figure()

    def take_away(self, older: _Period) -> None:
        self.admitted -= older.admitted
        self.deferred -= older.deferred
        for reason, count in older.refused.items():
            self.refused[reason] -= count
            if not self.refused[reason]:
                del self.refused[reason]
        self.ttft.take_away(older.ttft)
        self.tpot.take_away(older.tpot)

    def share(self) -> float | None:
        shares = [figure.kept / figure.judged for figure in (self.ttft, self.tpot) if figure.judged]
        return min(shares, default=None)


class _Window:
    """The periods of one tenant that had anything, and their sum."""

    __slots__ = ("periods", "total")

    def __init__(self) -> None:
        self.periods: deque[_Period] = deque()
        self.total = _Period(0)

    def move_to(self, number: int) -> None:
        """Forget what is older than the window that ends with this period."""
        while self.periods and self.periods[0].number <= number - PERIODS:
            self.total.take_away(self.periods.popleft())

    def at(self, number: int) -> tuple[_Period, _Period]:
        """This period, and the sum: what is noted goes into both."""
        if not self.periods or self.periods[-1].number != number:
            self.move_to(number)
            self.periods.append(_Period(number))
        return self.periods[-1], self.total


class TenantJournal:
    """`now` is seconds of any monotonic clock, the same in all calls."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._swept = 0

    def decided(self, tenant: str, outcome: str, reason: str, now: float) -> None:
        """admitted, deferred (and later the other), or refused for a reason."""
        for sums in self._at(tenant, now):
            if outcome == "admitted":
                sums.admitted += 1
            elif outcome == "deferred":
                sums.deferred += 1
            else:
                sums.refused[reason] += 1

    def settled(
        self,
        tenant: str,
        now: float,
        *,
        ttft_s: float | None,
        tpot_s: float | None,
        ttft_kept: bool | None,
        tpot_kept: bool | None,
    ) -> None:
        """A request is over. Times that were not measured, and promises that were not made, are None."""
        for sums in self._at(tenant, now):
            sums.ttft.add(ttft_s, ttft_kept)
            sums.tpot.add(tpot_s, tpot_kept)

    def tenants(self, now: float, most: int) -> list[str]:
        """Those with anything in the last five minutes; the busiest ones if they are more than `most`."""
        number = int(now / PERIOD_S)
        self._sweep(number)
        names = list(self._windows)
        if len(names) > most:

            def decisions(name: str) -> int:
                total = self._windows[name].total
                return total.admitted + total.refused.total()

            names = sorted(names, key=decisions, reverse=True)[:most]
        return sorted(names)

    def facts(self, names: Iterable[str], now: float) -> list[TenantFacts]:
        """What is told of these tenants; those of whom nothing is known are left out."""
        number = int(now / PERIOD_S)
        found = []
        for name in names:
            window = self._windows.get(name)
            if window is None:
                continue
            window.move_to(number)
            history: list[float | None] = [None] * PERIODS
            for period in window.periods:
                history[PERIODS - 1 - (number - period.number)] = period.share()
            total = window.total
            found.append(
                TenantFacts(
                    name,
                    total.admitted,
                    total.deferred,
                    dict(total.refused),
                    total.ttft.facts(),
                    total.tpot.facts(),
                    history,
                )
            )
        return found

    def _at(self, tenant: str, now: float) -> tuple[_Period, _Period]:
        number = int(now / PERIOD_S)
        window = self._windows.get(tenant)
        if window is None:
            if number >= self._swept + PERIODS:
                self._sweep(number)
            window = self._windows[tenant] = _Window()
        return window.at(number)

    def _sweep(self, number: int) -> None:
        """Forget tenants of whom nothing was heard in the window."""
        self._swept = number
        for name in [name for name, window in self._windows.items() if window.periods[-1].number <= number - PERIODS]:
            del self._windows[name]
