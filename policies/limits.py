"""The committed rate of a tenant: requests and tokens a minute, requests at once, tokens a day.

Reserve, then settle: the decision that lets a request in takes all it could use (prompt + max_tokens) at once, and its
end gives back what it did not. Capacity is counted at the first check, never later, so no burst slips between a check
and a count. Buckets hold a minute's worth and refill continuously (token bucket), so there is no window edge to game.
"""

from __future__ import annotations

import msgspec

from policies.admission.reasons import Reason
from policies.vocabulary import Limits

__all__ = ["Denied", "Grant", "RateSnapshot", "TenantLimits"]


class Grant(msgspec.Struct, frozen=True):
    """A reservation. `committed`: within the tenant's rate, so its contract binds; else best effort."""

    request_id: str
    tokens: int
    committed: bool = True


class Denied(msgspec.Struct, frozen=True):
    """A limit that does not allow the request. `retry_after_s` None: no wait can help, it alone is too large."""

    reason: Reason
    measured: float
    limit: float
    retry_after_s: float | None


class RateSnapshot(msgspec.Struct, frozen=True):
    """What the x-ratelimit-* headers say. None: unlimited. Remaining is never negative; reset is the time to full."""

    limit_requests: int | None
    remaining_requests: int | None
    reset_requests_s: float
    limit_tokens: int | None
    remaining_tokens: int | None
    reset_tokens_s: float


class _Bucket:
    """A token bucket of a minute's worth. The level may fall below zero where more was used than reserved."""

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = float(per_minute)
        self.rate = per_minute / 60.0
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        if now > self._at:  # a clock that steps back refills nothing
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def change(self, amount: float, now: float) -> None:
        self._level = min(self.capacity, self.level(now) + amount)

    def wait(self, amount: float, now: float) -> float | None:
        """Seconds until `amount` is there; None: never."""
        if amount > self.capacity:
            return None
        missing = amount - self.level(now)
        return 0.0 if missing <= 0 else missing / self.rate

    def resized(self, per_minute: int, now: float) -> _Bucket:
        """The same use so far, under another limit."""
        other = _Bucket(per_minute, now)
        other.change(self.level(now) - self.capacity, now)
        return other


class _Reservation(msgspec.Struct):
    tokens: int
    from_bucket: float  # taken from the token bucket
    day: int
    since: float
    restored: bool = False


class TenantLimits:
    """The state of one tenant's limits. `now` is monotonic seconds; `day` is the number of the UTC day.

    Every call is O(1). A request id is reserved at most once at a time; settling or cancelling twice changes nothing.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self._requests = None if limits.rpm is None else _Bucket(limits.rpm, now)
        self._tokens = None if limits.tpm is None else _Bucket(limits.tpm, now)
        self._live: dict[str, _Reservation] = {}
        self._day = 0
        self._day_used = 0  # settled today
        self._day_reserved = 0  # reserved today and not settled
        self._hold_s = 1.0  # how long a request lives, a moving average

    @property
    def live(self) -> int:
        """Requests reserved and not settled."""
        return len(self._live)

    def update(self, limits: Limits, now: float) -> None:
        """Put other limits in force; what was used and reserved so far still counts."""
        self._requests = _changed(self._requests, limits.rpm, now)
        self._tokens = _changed(self._tokens, limits.tpm, now)
        self.limits = limits

    def reserve(
        self,
        request_id: str,
        tokens: int,
        now: float,
        day: int,
        *,
        best_effort: bool = False,
        day_ends_in_s: float = 86_400.0,
    ) -> Grant | Denied:
        """Take one request and `tokens` (prompt + max_tokens) from every limit, or nothing at all.

        With `best_effort`, a tenant above its rate a minute is let in uncommitted, and takes nothing from the buckets;
        concurrency and the daily budget bind always. A request id that is live already gets its grant again.
        `day_ends_in_s` is what a spent daily budget answers as the time to come back.
        """
        if (held := self._live.get(request_id)) is not None:
            return Grant(request_id, held.tokens)
        denied = self._never(tokens) or self._at_once() or self._daily(tokens, day, day_ends_in_s)
        if denied is not None:
            return denied
        rate = self._rate(tokens, now)
        if rate is not None and not (best_effort and rate.retry_after_s is not None):
            return rate
        if rate is None:
            if self._requests is not None:
                self._requests.change(-1, now)
            if self._tokens is not None:
                self._tokens.change(-tokens, now)
        self._hold(request_id, _Reservation(tokens, tokens if rate is None else 0, day, now), day)
        return Grant(request_id, tokens, committed=rate is None)

    def settle(self, request_id: str, used_tokens: int, now: float) -> int:
        """End a request that used `used_tokens`: the rest goes back. Returns that rest; 0 for an unknown id."""
        held = self._live.pop(request_id, None)
        if held is None:
            return 0
        used = max(0, used_tokens)
        if self._tokens is not None and held.from_bucket and not (held.restored and used > held.from_bucket):
            self._tokens.change(held.from_bucket - used, now)
        if held.day == self._day:
            self._day_reserved -= held.tokens
            self._day_used += used
        self._hold_s += 0.1 * (max(0.0, now - held.since) - self._hold_s)
        return held.tokens - used

    def cancel(self, request_id: str, now: float) -> int:
        """End a request that never ran: all of it goes back, its place in the minute too."""
        held = self._live.get(request_id)
        if held is not None and self._requests is not None and held.from_bucket and not held.restored:
            self._requests.change(1, now)
        return self.settle(request_id, 0, now)

    def restore(self, request_id: str, tokens: int, now: float, day: int) -> None:
        """Count a request that was admitted before a restart. Never denied; no bucket is driven below zero."""
        if request_id in self._live:
            return
        taken = 0.0
        if self._tokens is not None:
            taken = min(float(tokens), max(0.0, self._tokens.level(now)))
            self._tokens.change(-taken, now)
        self._hold(request_id, _Reservation(tokens, taken, day, now, restored=True), day)

    def restore_day(self, used_tokens: int, day: int) -> None:
        """Set what the ledger says was used today, after a restart."""
        self._turn(day)
        self._day_used = used_tokens

    def committed(self, now: float) -> bool:
        """Whether the tenant is within its committed rate, so that its contract binds."""
        buckets = (self._requests, self._tokens)
        within = all(bucket is None or bucket.level(now) >= 0 for bucket in buckets)
        return within and (self.limits.concurrency is None or len(self._live) <= self.limits.concurrency)

    def daily_remaining(self, day: int) -> int | None:
        """Tokens left today, reservations counted; None: unlimited."""
        self._turn(day)
        budget = self.limits.daily_tokens
        return None if budget is None else max(0, budget - self._day_used - self._day_reserved)

    def snapshot(self, now: float) -> RateSnapshot:
        """Limits, what remains of them, and the seconds until they are full again."""
        requests, tokens = _view(self._requests, now), _view(self._tokens, now)
        return RateSnapshot(self.limits.rpm, *requests, self.limits.tpm, *tokens)

    def _hold(self, request_id: str, reservation: _Reservation, day: int) -> None:
        self._turn(day)
        self._live[request_id] = reservation
        self._day_reserved += reservation.tokens

    def _turn(self, day: int) -> None:
        # What yesterday's live requests reserved stays yesterday's.
        if day > self._day:
            self._day, self._day_used, self._day_reserved = day, 0, 0

    def _never(self, tokens: int) -> Denied | None:
        limits = self.limits
        for reason, needed, limit in (
            (Reason.requests_per_minute, 1, limits.rpm),
            (Reason.tokens_per_minute, tokens, limits.tpm),
            (Reason.concurrency, 1, limits.concurrency),
            (Reason.daily_budget, tokens, limits.daily_tokens),
        ):
            if limit is not None and needed > limit:
                return Denied(reason, needed, limit, None)
        return None

    def _at_once(self) -> Denied | None:
        limit = self.limits.concurrency
        if limit is None or len(self._live) < limit:
            return None
        return Denied(Reason.concurrency, len(self._live), limit, self._hold_s / limit)

    def _daily(self, tokens: int, day: int, day_ends_in_s: float) -> Denied | None:
        remaining = self.daily_remaining(day)
        if remaining is None or tokens <= remaining:
            return None
        budget = self.limits.daily_tokens or 0
        return Denied(Reason.daily_budget, budget - remaining + tokens, budget, day_ends_in_s)

    def _rate(self, tokens: int, now: float) -> Denied | None:
        if self._requests is not None and (wait := self._requests.wait(1, now)):
            used = self._requests.capacity - self._requests.level(now)
            return Denied(Reason.requests_per_minute, used + 1, self._requests.capacity, wait)
        if self._tokens is not None and (wait := self._tokens.wait(tokens, now)):
            used = self._tokens.capacity - self._tokens.level(now)
            return Denied(Reason.tokens_per_minute, used + tokens, self._tokens.capacity, wait)
        return None


def _changed(bucket: _Bucket | None, per_minute: int | None, now: float) -> _Bucket | None:
    if per_minute is None:
        return None
    return _Bucket(per_minute, now) if bucket is None else bucket.resized(per_minute, now)


def _view(bucket: _Bucket | None, now: float) -> tuple[int | None, float]:
    if bucket is None:
        return None, 0.0
    level = bucket.level(now)
    return max(0, int(level)), 0.0 if bucket.rate == 0 else (bucket.capacity - level) / bucket.rate
