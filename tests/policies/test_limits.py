"""Reserve, then settle: what a tenant may use is counted once, at the door."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.admission.reasons import Reason
from policies.limits import Denied, Grant, TenantLimits
from policies.vocabulary import Limits

DAY = 20_000


def limits(**kwargs: int) -> TenantLimits:
    return TenantLimits(Limits(**kwargs), 0.0)


def denied(outcome: Grant | Denied) -> Denied:
    assert isinstance(outcome, Denied)
    return outcome


def test_without_limits_everything_is_granted() -> None:
    """None means unlimited, on every limit."""
    tenant = limits()
    assert all(isinstance(tenant.reserve(str(i), 10**6, 0.0, DAY), Grant) for i in range(1000))
    assert tenant.snapshot(0.0).limit_requests is None
    assert tenant.daily_remaining(DAY) is None


def test_requests_refill_one_at_a_time() -> None:
    """A bucket of 60 requests a minute is empty after 60, and the next is due a second later."""
    tenant = limits(rpm=60)
    for i in range(60):
        assert isinstance(tenant.reserve(str(i), 1, 0.0, DAY), Grant)
    refusal = denied(tenant.reserve("late", 1, 0.0, DAY))
    assert refusal.reason is Reason.requests_per_minute
    assert (refusal.measured, refusal.limit, refusal.retry_after_s) == (61, 60, 1.0)
    assert isinstance(tenant.reserve("late", 1, 1.0, DAY), Grant)


def test_the_whole_request_is_reserved_and_the_rest_comes_back() -> None:
    """Prompt and max_tokens are taken at the door; what was not used is there again when the request ends."""
    tenant = limits(tpm=1000)
    tenant.reserve("a", 800, 0.0, DAY)
    refusal = denied(tenant.reserve("b", 300, 0.0, DAY))
    assert refusal.reason is Reason.tokens_per_minute
    assert refusal.retry_after_s == pytest.approx(100 / (1000 / 60))
    assert tenant.settle("a", 100, 0.0) == 700
    assert tenant.snapshot(0.0).remaining_tokens == 900
    assert isinstance(tenant.reserve("b", 300, 0.0, DAY), Grant)


def test_the_computed_wait_is_exactly_enough() -> None:
    """A tenant that comes back after retry_after_s is granted, a moment earlier it is not."""
    tenant = limits(tpm=700)
    tenant.reserve("a", 650, 0.0, DAY)
    wait = denied(tenant.reserve("b", 333, 2.0, DAY)).retry_after_s
    assert wait is not None
    assert isinstance(tenant.reserve("b", 333, 2.0 + wait - 0.01, DAY), Denied)
    assert isinstance(tenant.reserve("b", 333, 2.0 + wait + 1e-9, DAY), Grant)


def test_nothing_is_taken_by_a_denial() -> None:
    """A request that one limit denies leaves all the others as they were."""
    tenant = limits(rpm=10, tpm=100, concurrency=5, daily_tokens=10_000)
    tenant.reserve("a", 90, 0.0, DAY)
    before = tenant.snapshot(0.0), tenant.live, tenant.daily_remaining(DAY)
    assert isinstance(tenant.reserve("b", 50, 0.0, DAY), Denied)
    assert (tenant.snapshot(0.0), tenant.live, tenant.daily_remaining(DAY)) == before


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"tpm": 100}, Reason.tokens_per_minute), ({"daily_tokens": 100}, Reason.daily_budget)],
)
def test_a_request_larger_than_a_limit_is_told_that_no_wait_helps(limit: dict[str, int], reason: Reason) -> None:
    """What exceeds a bucket's capacity by itself is denied without a time to come back."""
    refusal = denied(limits(**limit).reserve("a", 101, 0.0, DAY))
    assert (refusal.reason, refusal.measured, refusal.limit, refusal.retry_after_s) == (reason, 101, 100, None)


def test_concurrency_is_freed_by_the_end_of_a_request() -> None:
    """As many at once as allowed; the wait is an estimate from how long requests last."""
    tenant = limits(concurrency=2)
    tenant.reserve("a", 1, 0.0, DAY)
    tenant.reserve("b", 1, 0.0, DAY)
    refusal = denied(tenant.reserve("c", 1, 1.0, DAY))
    assert refusal.reason is Reason.concurrency
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s > 0
    tenant.settle("a", 1, 4.0)
    assert isinstance(tenant.reserve("c", 1, 4.0, DAY), Grant)


def test_the_daily_budget_counts_reservations_and_turns_at_midnight() -> None:
    """Reserved and used tokens of the day together stay under the budget; the next day begins with all of it."""
    tenant = limits(daily_tokens=1000)
    tenant.reserve("a", 600, 0.0, DAY)
    refusal = denied(tenant.reserve("b", 500, 0.0, DAY, day_ends_in_s=120.0))
    assert (refusal.reason, refusal.measured, refusal.retry_after_s) == (Reason.daily_budget, 1100, 120.0)
    tenant.settle("a", 500, 1.0)
    assert tenant.daily_remaining(DAY) == 500
    tenant.reserve("b", 400, 2.0, DAY)
    assert tenant.daily_remaining(DAY + 1) == 1000
    tenant.settle("b", 400, 3.0)  # yesterday's tokens do not fall on today
    assert tenant.daily_remaining(DAY + 1) == 1000


def test_settling_twice_gives_back_once() -> None:
    """A second settle or cancel of the same request changes nothing."""
    tenant = limits(rpm=10, tpm=1000)
    tenant.reserve("a", 500, 0.0, DAY)
    tenant.settle("a", 400, 0.0)
    after = tenant.snapshot(0.0)
    assert tenant.settle("a", 0, 0.0) == 0
    assert tenant.cancel("a", 0.0) == 0
    assert tenant.snapshot(0.0) == after


def test_cancelling_gives_everything_back() -> None:
    """A request that never ran costs neither tokens nor a place in the minute."""
    tenant = limits(rpm=10, tpm=1000, concurrency=1)
    full = tenant.snapshot(0.0)
    tenant.reserve("a", 500, 0.0, DAY)
    assert tenant.cancel("a", 0.0) == 500
    assert tenant.snapshot(0.0) == full
    assert tenant.live == 0


def test_reserving_a_live_id_again_takes_nothing_more() -> None:
    """A second attempt of a live request is the same reservation."""
    tenant = limits(rpm=10, tpm=1000, concurrency=1)
    tenant.reserve("a", 500, 0.0, DAY)
    before = tenant.snapshot(0.0)
    assert tenant.reserve("a", 500, 0.0, DAY) == Grant("a", 500)
    assert tenant.snapshot(0.0) == before


def test_above_the_rate_best_effort_is_let_in_uncommitted() -> None:
    """With best_effort the rate a minute relegates instead of denying; hard limits still deny."""
    tenant = limits(rpm=1, concurrency=2)
    assert tenant.reserve("a", 10, 0.0, DAY, best_effort=True) == Grant("a", 10, committed=True)
    assert tenant.reserve("b", 10, 0.0, DAY, best_effort=True) == Grant("b", 10, committed=False)
    assert isinstance(tenant.reserve("c", 10, 0.0, DAY, best_effort=True), Denied)
    assert tenant.committed(0.0)


def test_a_restart_counts_live_requests_without_a_debt() -> None:
    """Restored requests fill concurrency and what the bucket holds, and their end gives back no more than was taken."""
    tenant = limits(tpm=100, concurrency=3, daily_tokens=1000)
    tenant.restore_day(300, DAY)
    for name in "abc":
        tenant.restore(name, 80, 0.0, DAY)
    assert tenant.live == 3
    assert tenant.daily_remaining(DAY) == 1000 - 300 - 240
    assert tenant.snapshot(0.0).remaining_tokens == 0
    assert isinstance(tenant.reserve("d", 1, 0.0, DAY), Denied)
    for name in "abc":
        tenant.settle(name, 80, 0.0)
    assert tenant.snapshot(0.0).remaining_tokens == 0
    assert tenant.daily_remaining(DAY) == 1000 - 300 - 240


def test_new_limits_keep_what_was_used() -> None:
    """Changing a tenant's limits grants no fresh bucket."""
    tenant = limits(tpm=1000)
    tenant.reserve("a", 900, 0.0, DAY)
    tenant.update(Limits(tpm=2000, rpm=5), 0.0)
    snapshot = tenant.snapshot(0.0)
    assert (snapshot.remaining_tokens, snapshot.remaining_requests) == (1100, 5)


def test_the_reset_is_the_time_until_full() -> None:
    """x-ratelimit-reset counts down to a full bucket."""
    tenant = limits(rpm=60, tpm=600)
    tenant.reserve("a", 300, 0.0, DAY)
    snapshot = tenant.snapshot(10.0)
    assert snapshot.reset_requests_s == 0.0
    assert snapshot.reset_tokens_s == pytest.approx(20.0)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "cancel", "restore"]),
        st.integers(0, 7),  # request
        st.integers(1, 400),  # tokens
        st.integers(0, 30),  # seconds that pass before
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_whatever_happens_the_figures_stay_in_range(operations: list[tuple[str, int, int, int]]) -> None:
    """Never negative, never above the limit, and concurrency is what is live."""
    tenant = limits(rpm=20, tpm=1000, concurrency=5, daily_tokens=5000)
    now, live = 0.0, dict[str, int]()
    for name, number, tokens, passed in operations:
        request_id, now = str(number), now + passed
        if name == "reserve":
            if isinstance(tenant.reserve(request_id, tokens, now, DAY), Grant):
                live.setdefault(request_id, tokens)
        elif name == "restore":
            tenant.restore(request_id, tokens, now, DAY)
            live.setdefault(request_id, tokens)
        elif name == "settle":
            tenant.settle(request_id, min(tokens, live.pop(request_id, 0)), now)
        else:
            tenant.cancel(request_id, now)
            live.pop(request_id, None)
        snapshot = tenant.snapshot(now)
        assert snapshot.remaining_tokens is not None
        assert snapshot.remaining_requests is not None
        assert 0 <= snapshot.remaining_tokens <= 1000
        assert 0 <= snapshot.remaining_requests <= 20
        assert snapshot.reset_tokens_s >= 0
        assert 0 <= (tenant.daily_remaining(DAY) or 0) <= 5000
        assert tenant.live == len(live)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1)), max_size=20))
def test_tokens_are_conserved(requests: list[tuple[int, float]]) -> None:
    """At one instant, what remains, what is reserved and what was used add up to the limit; nothing is lost."""
    tenant = limits(tpm=100_000, daily_tokens=100_000)
    used = reserved = 0
    for number, (tokens, share) in enumerate(requests):
        assert isinstance(tenant.reserve(str(number), tokens, 5.0, DAY), Grant)
        if share < 0.7:
            spent = int(tokens * share)
            assert tenant.settle(str(number), spent, 5.0) == tokens - spent
            used += spent
        else:
            reserved += tokens
        assert tenant.snapshot(5.0).remaining_tokens == 100_000 - used - reserved
        assert tenant.daily_remaining(DAY) == 100_000 - used - reserved


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 20)), max_size=60))
def test_no_window_gets_more_than_a_bucket_and_its_refill(requests: list[tuple[int, float]]) -> None:
    """Over any stretch of time the granted tokens stay under one bucket plus what refilled meanwhile."""
    tenant = limits(tpm=600)
    now, granted = 0.0, list[tuple[float, int]]()
    for number, (tokens, passed) in enumerate(requests):
        now += passed
        if isinstance(tenant.reserve(str(number), tokens, now, DAY), Grant):
            granted.append((now, tokens))
            tenant.settle(str(number), tokens, now)
    for first in range(len(granted)):
        total = 0
        for at, tokens in granted[first:]:
            total += tokens
            assert total <= 600 + 10 * (at - granted[first][0]) + 1e-6
