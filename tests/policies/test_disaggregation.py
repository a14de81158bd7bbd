"""Prefill and decode apart: who takes a request, what is foreseen of a decode worker, and the mixed pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.disaggregation import (
    Coming,
    DecodeState,
    choose_decode,
    foresee,
    kv_bytes,
    split_workers,
)
from policies.mixed_pool import Change, Duty, MixedPool, Side


def test_workers_are_split_so_that_both_kinds_are_there() -> None:
    """Half and half, the odd one decodes; a split without either kind is refused."""
    assert split_workers(2) == (1, 1)
    assert split_workers(5) == (2, 3)
    assert split_workers(5, prefill=4) == (4, 1)
    for workers, prefill in ((1, 0), (4, 4)):
        with pytest.raises(ValueError, match="at least one of each kind"):
            split_workers(workers, prefill=prefill)


def test_kv_travels_in_whole_blocks() -> None:
    """A block of which one token is known takes as long as a full one."""
    assert [kv_bytes(tokens, 1000) for tokens in (0, 1, 16, 17)] == [0, 1000, 1000, 2000]


def test_a_decode_worker_is_judged_at_the_end_of_the_prefill() -> None:
    """The one that is full now but about to be empty is better than the one that will be full."""
    full_now = DecodeState("a", 100, 8, 0.1, [(160, 5)] * 8)
    filling = DecodeState("b", 100, 8, 0.1, [(160, 500)] * 4, [Coming(0.5, 160, 500)] * 4)
    now = choose_decode([full_now, filling], tokens=160, at_s=0.0, now=0.0)
    later = choose_decode([full_now, filling], tokens=160, at_s=2.0, now=0.0)
    assert now is not None
    assert later is not None
    assert (now.worker, later.worker) == ("b", "a")
    assert (later.running, later.free_blocks) == (0, 100)


def test_what_is_foreseen_counts_growth_and_what_is_promised() -> None:
    """Rows grow a token a step, end after their outputs, and promised requests count from when they come."""
    state = DecodeState("a", 100, 8, 0.1, [(16, 100), (16, 10)], [Coming(1.0, 32, 100), Coming(9.0, 32, 100)])
    assert foresee(state, 0.0, now=0.0)[1:] == (2, 98, 32)
    # 20 steps: one ended; the other has 36 tokens; the first promised came 10 steps ago and has 42.
    assert foresee(state, 2.0, now=0.0)[1:] == (2, 100 - 3 - 3, 36 + 42)


@given(
    rows=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 300)), max_size=12),
    coming=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 400), st.integers(1, 300)), max_size=12),
    at_s=st.floats(0, 40),
)
def test_a_forecast_is_what_a_worker_does(
    rows: list[tuple[int, int]], coming: list[tuple[float, int, int]], at_s: float
) -> None:
    """Step by step, a worker that nothing else comes to is then as it was foreseen."""
    step_s = 0.25
    at_s = round(at_s / step_s) * step_s
    promised = [Coming(round(at / step_s) * step_s, tokens, outputs) for at, tokens, outputs in coming]
    seen = foresee(DecodeState("a", 10_000, 64, step_s, rows, promised), at_s, now=0.0)
    live = [list(row) for row in rows]
    for step in range(round(at_s / step_s) + 1):
        live += [[one.tokens, one.outputs] for one in promised if one.at_s == step * step_s]
        if step * step_s == at_s:
            break
        live = [[tokens + 1, outputs - 1] for tokens, outputs in live if outputs > 1]
    assert seen.running == len(live)
    assert seen.context == sum(tokens for tokens, _ in live)
    assert seen.free_blocks == 10_000 - sum(-(-tokens // 16) for tokens, _ in live)


def pool() -> MixedPool:
    return MixedPool(
        {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"},
        borrow_at={"prefill": 1000, "decode": 10},
        return_at={"prefill": 200, "decode": 4},
    )


def duties(p0: int, p1: int, d0: int, d1: int, *, helping: int = 0) -> dict[str, Duty]:
    """Queued tokens of p0 and p1, requests of d0 and d1; d1 may be `helping` with tokens too."""
    return {"p0": Duty(p0, 0), "p1": Duty(p1, 0), "d0": Duty(0, d0), "d1": Duty(helping, d1)}


def test_a_long_queue_borrows_the_idlest_of_the_other_side() -> None:
    """Over the threshold one joins the pool and serves both; under the other it retires; drained, it goes back."""
    mixed = pool()
    assert mixed.review(duties(900, 1000, 3, 2)) == []
    assert mixed.review(duties(1500, 1500, 3, 2)) == [Change("d1", "mixed")]
    assert mixed.serving("prefill") == ["p0", "p1", "d1"]
    assert mixed.serving("decode") == ["d0", "d1"]
    assert mixed.review(duties(800, 900, 3, 2, helping=700)) == []
    assert mixed.review(duties(100, 100, 3, 2, helping=100)) == []
    assert mixed.serving("prefill") == ["p0", "p1"]
    assert mixed.role("d1") == "mixed"
    assert mixed.review(duties(100, 100, 3, 2, helping=0)) == [Change("d1", "decode")]


def test_a_retiring_worker_is_kept_when_the_queue_grows_again() -> None:
    """It is borrowed already, so nobody else is."""
    mixed = pool()
    mixed.review(duties(1500, 1500, 3, 2))
    mixed.review(duties(100, 100, 3, 2, helping=100))
    assert mixed.review(duties(1500, 1500, 3, 2, helping=50)) == []
    assert mixed.serving("prefill") == ["p0", "p1", "d1"]


def test_nobody_is_left_without_workers_of_its_own() -> None:
    """The last worker that only decodes is not lent, and a side that is too busy lends nobody."""
    mixed = pool()
    assert mixed.review(duties(1500, 1500, 30, 30)) == []
    mixed.review(duties(1500, 1500, 3, 2))
    assert mixed.review(duties(5000, 5000, 3, 2, helping=5000)) == []


def test_thresholds_that_would_flap_are_refused() -> None:
    """A queue must be shorter for a worker to go back than for it to be borrowed."""
    sides: dict[str, Side] = {"p": "prefill", "d": "decode"}
    even: dict[Side, float] = {"prefill": 5, "decode": 5}
    with pytest.raises(ValueError, match="must be below"):
        MixedPool(sides, borrow_at=even, return_at={"prefill": 5, "decode": 1})
    with pytest.raises(ValueError, match="no worker for decode"):
        MixedPool({"p": "prefill"}, borrow_at=even, return_at={"prefill": 1, "decode": 1})


@given(st.lists(st.tuples(*[st.integers(0, 3000)] * 4, *[st.integers(0, 30)] * 4), max_size=30))
def test_a_worker_goes_back_only_when_it_is_drained(rounds: list[tuple[int, ...]]) -> None:
    """Whatever queues do: both sides have a worker of their own, and none returns with the other side's work."""
    mixed = pool()
    names = ["p0", "p1", "d0", "d1"]
    for figures in rounds:
        now = {
            name: Duty(
                figures[i] if name[0] == "p" or mixed.role(name) == "mixed" else 0,
                figures[i + 4] if name[0] == "d" or mixed.role(name) == "mixed" else 0,
            )
            for i, name in enumerate(names)
        }
        for change in mixed.review(now):
            if change.role != "mixed":
                foreign = now[change.worker].decoding if change.role == "prefill" else now[change.worker].prefill_tokens
                assert foreign == 0
        assert any(mixed.role(name) == "prefill" for name in names)
        assert any(mixed.role(name) == "decode" for name in names)
