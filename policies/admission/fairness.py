"""Who asks for more than its fair share while capacity is short: the first to be turned away.

For every tenant, over a window that fades: the device time that it asked for, and that it was admitted for. It counts
from the first request that had to wait or go; what was used while there was enough for all is nobody's debt. What was
admitted in all is the capacity. The fair line L divides it by weighted max-min: each tenant gets what it asked for, but
no more than L times its weight (Σ min(asked, L · weight) = Σ admitted). After a window in which nobody had to wait or
go, nobody is above the line, however unequal: there is nothing to share out.

A tenant is above the line if it asks for more than its share and gets it, or nearly. Where another tenant with demand
is not, the one above must leave room: part of the time that it could wait, of the slots and of the blocks
(`Policy.fair_room`), so that the other finds the device less than full whenever it comes. The loss is bounded by that
room, and lasts as long as the window: capacity that nobody else asks for is given out again.

How much room is enough depends on how long the prompts of the others are, and how even. With `most`, it is steered: it
grows while more than one in a hundred of those below the line is refused, and shrinks while fewer are.
"""

from __future__ import annotations

from math import exp

__all__ = ["FairLine"]

#: Device seconds asked for, as they have faded: with less, a tenant has no demand.
_FORGOTTEN_S = 1e-6
#: So often the line is drawn anew, in windows.
_REDRAWN = 0.005
#: By so much the room grows with a refusal below the line; of those below, so many may be refused.
_ROOM_STEP, _REFUSED = 0.2, 0.01


class _Account:
    """What one tenant asked for and got, in device seconds, as of `at`."""

    __slots__ = ("asked", "at", "got", "weight")

    def __init__(self, now: float) -> None:
        self.asked = self.got = 0.0
        self.at, self.weight = now, 1.0


class FairLine:
    """The accounts of at most `tenants` tenants (those that asked last). O(1) an arrival, and O(n log n) in the tenants
    of the window 200 times a window at most.

    `room` is what those above the line leave, between `least` and `most`; with `most` at or below `least` it is fixed.
    """

    def __init__(
        self,
        *,
        window_s: float = 10.0,
        slack: float = 0.1,
        tenants: int = 1024,
        least: float = 0.2,
        most: float = 0.0,
    ) -> None:
        if window_s <= 0 or not 0 <= slack < 1:
            raise ValueError(f"fair line over {window_s} s, slack {slack}: needs a window > 0 and a slack in [0, 1)")
        self._window_s, self._slack, self._tenants = window_s, slack, tenants
        self._accounts: dict[str, _Account] = {}
        self._above: set[str] = set()
        self._others = False  # somebody with demand is not above
        self._drawn_at = self._short_at = float("-inf")
        self.room, self._least, self._most = least, least, max(least, most)

    @property
    def steered(self) -> bool:
        """Whether the room grows and shrinks."""
        return self._most > self._least

    def decided(self, tenant: str, *, refused: bool, now: float) -> None:
        """A newcomer was refused for want of room, or was not: what decides whether those below the line have enough.

        O(1). Nothing changes while nobody is above the line.
        """
        if not self.steered or not self._above or tenant in self._above or now - self._short_at > self._window_s:
            return
        change = _ROOM_STEP if refused else -_ROOM_STEP * _REFUSED / (1 - _REFUSED)
        self.room = min(self._most, max(self._least, self.room + change))

    def short(self, now: float) -> None:
        """A request had to wait or go."""
        if now - self._short_at > self._window_s:
            self._accounts.clear()
            self._above = set()
            self._drawn_at = float("-inf")
        self._short_at = now

    def asked(self, tenant: str, cost_s: float, weight: float, now: float) -> None:
        """A request of `tenant` came that would take so much device time."""
        account = self._accounts.pop(tenant, None) or _Account(now)
        self._accounts[tenant] = account  # the last to be forgotten
        self._fade(account, now)
        account.asked += cost_s
        account.weight = weight if weight > 0 else 1.0
        if len(self._accounts) > self._tenants:
            del self._accounts[next(iter(self._accounts))]

    def got(self, tenant: str, cost_s: float, now: float) -> None:
        """It was admitted."""
        account = self._accounts.get(tenant)
        if account is not None:
            self._fade(account, now)
            account.got += cost_s

    def must_leave_room(self, tenant: str, now: float) -> bool:
        """Whether `tenant` is above its fair line, and another that asks is not."""
        if now - self._short_at > self._window_s:
            return False
        if now - self._drawn_at >= _REDRAWN * self._window_s:
            self._draw(now)
        return self._others and tenant in self._above

    def _fade(self, account: _Account, now: float) -> None:
        left = exp((account.at - now) / self._window_s)
        account.asked *= left
        account.got *= left
        account.at = now

    def _draw(self, now: float) -> None:
        self._drawn_at = now
        for tenant, account in list(self._accounts.items()):
            self._fade(account, now)
            if account.asked < _FORGOTTEN_S:
                del self._accounts[tenant]
        line = _fair_line([(a.asked, a.weight) for a in self._accounts.values()], self._capacity())
        enough = 1 - self._slack
        self._above = {
            tenant
            for tenant, a in self._accounts.items()
            if a.asked > line * a.weight * (1 + 1e-9) and a.got >= enough * line * a.weight
        }
        self._others = len(self._above) < len(self._accounts)

    def _capacity(self) -> float:
        return sum(account.got for account in self._accounts.values())


def _fair_line(demands: list[tuple[float, float]], capacity: float) -> float:
    """L with Σ min(asked, L · weight) = capacity; infinite if the capacity is enough for all."""
    left, weights = capacity, sum(weight for _, weight in demands)
    for asked, weight in sorted(demands, key=lambda demand: demand[0] / demand[1]):
        if asked / weight * weights > left:
            return left / weights
        left -= asked
        weights -= weight
    return float("inf")
