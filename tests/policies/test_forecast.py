"""Forecasts agree with what then happens, step by step."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_sim import Job, Worker

from policies.admission.forecast import Ask, forecast
from policies.admission.future_kv import earliest_start, peak
from policies.admission.history import OutputHistory
from policies.admission.reasons import Reason
from policies.admission.worker_state import Reservation, WorkerState
from policies.vocabulary import RequestLoad, Tier

ROWS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 500)), max_size=10)


def brute_peak(rows: list[tuple[int, int]], tokens: int, outputs: int, start: int) -> int:
    """Every step played: the most tokens at the end of a step, from the newcomer's start on."""
    everyone = [(left, held, 0) for left, held in rows] + [(outputs + start, tokens - start, start)]
    most = 0
    for step in range(start + 1, max(left for left, _, _ in everyone) + 1):
        most = max(most, sum(held + step for left, held, begin in everyone if begin < step <= left))
    return most


@given(ROWS, st.integers(1, 500), st.integers(1, 60), st.integers(0, 70))
def test_the_future_peak_is_the_peak_of_every_step(
    rows: list[tuple[int, int]], tokens: int, outputs: int, start: int
) -> None:
    """The closed form equals a simulation of each step, for a newcomer now or later."""
    expected = brute_peak(rows, tokens, outputs, start)
    assert peak(sorted(rows, reverse=True), tokens, outputs, start) == expected


@given(ROWS, st.integers(1, 500), st.integers(1, 60), st.integers(600, 3000))
def test_at_its_earliest_start_a_newcomer_fits(
    rows: list[tuple[int, int]], tokens: int, outputs: int, capacity: int
) -> None:
    """The peak is under the capacity at the start that was computed, and now if that is zero."""
    start = earliest_start(rows, tokens, outputs, capacity)
    assert brute_peak(rows, tokens, outputs, start) <= capacity
    if start:
        assert brute_peak(rows, tokens, outputs, 0) > capacity


def test_what_is_still_to_come_is_a_quantile_of_longer_outputs() -> None:
    """Of 100 known lengths the 80 % quantile of those above what is generated; max_tokens where too few are known."""
    history = OutputHistory(enough=20)
    for length in range(1, 101):
        history.add("a", length)
    assert history.remaining("a", 0, 1000, 0.8) == 81
    assert history.remaining("a", 50, 1000, 0.8) == 41
    assert history.remaining("a", 0, 30, 0.8) == 30
    assert history.remaining("a", 95, 400, 0.8) == 400  # too few were longer


def test_of_a_new_tenant_the_lengths_of_all_are_expected() -> None:
    """Until enough of its own answers are known; then these alone, until one is longer than all of them."""
    history = OutputHistory(enough=10)
    assert history.remaining("new", 0, 4000) == 4000
    for length in range(101, 201):
        history.add("old", length)
    assert history.remaining("new", 0, 4000, 0.8) == 181
    for _ in range(9):
        history.add("new", 7)
    assert history.remaining("new", 0, 4000, 0.8) > 100
    for _ in range(2):
        history.add("new", 7)
    assert history.remaining("new", 0, 4000, 0.8) == 7
    assert history.remaining("new", 30, 4000, 0.8) == 151


def test_history_forgets_what_is_old() -> None:
    """Only the last `window` outputs of the last `tenants` tenants are kept, and four times as many of all."""
    history = OutputHistory(window=20, tenants=2, enough=20)
    for length in [1000] * 20 + [10] * 20:
        history.add("a", length)
    assert history.remaining("a", 0, 4000, 0.8) == 10
    history.add("b", 1)
    history.add("c", 1)
    assert history.remaining("a", 0, 4000, 0.8) == 1000, "its own are forgotten: those of all"
    for _ in range(80):
        history.add("c", 3)
    assert history.remaining("a", 0, 4000, 0.8) == 3


def busy_worker(seed: int, *, decoding: int, prompts: int, slots: int = 64) -> Worker:
    rng = random.Random(seed)
    worker = Worker(slots=slots, blocks=20_000)
    for i in range(decoding):
        length, outputs = rng.randint(16, 1500), rng.randint(20, 200)
        job = Job(f"d{i}", 0, length, outputs, outputs, tpot_s=1.0)
        job.computed, job.generated, job.slot, job.first_s = length, 1, True, 0.0
        worker.jobs.append(job)
    for i in range(prompts):
        outputs = rng.randint(20, 100)
        worker.jobs.append(Job(f"p{i}", 0, rng.randint(16, 1500), outputs, outputs, ttft_s=rng.uniform(5, 50)))
    return worker


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("decoding", "prompts"), [(0, 0), (20, 0), (0, 6), (20, 10)])
def test_the_first_token_comes_when_it_was_foreseen(seed: int, decoding: int, prompts: int) -> None:
    """With exact step times the forecast is no more than 5 % early and 15 % late, the steps in flight aside."""
    worker = busy_worker(seed, decoding=decoding, prompts=prompts)
    own = Job("own", 0, random.Random(seed).randint(20, 1500), 50, 50, ttft_s=20.0)
    state = WorkerState(worker.load())
    foreseen = forecast(state, Ask(tier=0, prefill=own.prompt, outputs=50, first_token_in_s=20.0))
    worker.jobs.append(own)
    while own.first_s is None:
        worker.step()
    slack = state.lag_s + state.decode_s
    assert own.first_s * 0.95 <= foreseen.first_token_s <= own.first_s * 1.15 + slack


@pytest.mark.parametrize("seed", range(12))
def test_a_slot_is_foreseen_to_be_free_when_it_is(seed: int) -> None:
    """When every slot is taken, the start is that of the k-th end, k - 1 prompts having come before."""
    worker = busy_worker(seed, decoding=8, prompts=4, slots=8)
    own = Job("own", 0, 200, 50, 50, ttft_s=1000.0)
    foreseen = forecast(WorkerState(worker.load()), Ask(tier=0, prefill=200, outputs=50, first_token_in_s=1000.0))
    worker.jobs.append(own)
    while own.first_s is None:
        worker.step()
    assert own.first_s * 0.9 <= foreseen.first_token_s <= own.first_s * 1.3
    assert foreseen.hold_s > 0


def test_a_tight_pace_leaves_less_room_for_prompts() -> None:
    """A running row whose pace allows little beyond a decode step makes prompts take longer; its lead buys room."""
    times = []
    for tpot, lead in ((1.0, 0.0), (0.014, 0.0), (0.014, 0.1)):
        worker = busy_worker(1, decoding=4, prompts=0)
        load = worker.load()
        for i, r in enumerate(load.requests):
            fields = {name: getattr(r, name) for name in r.__struct_fields__}
            load.requests[i] = type(r)(**{**fields, "tpot_s": tpot, "lead_s": lead})
        times.append(forecast(WorkerState(load), Ask(tier=0, prefill=4000, outputs=50)).first_token_s)
    free, tight, lent = times
    assert free < lent < tight


def test_prompts_of_a_lower_tier_or_later_deadline_go_behind() -> None:
    """Only what the scheduler serves first delays a candidate's own prompt."""
    ask = Ask(tier=0, prefill=400, outputs=50, first_token_in_s=1.0)
    alone = forecast(WorkerState(Worker().load()), ask)
    for other, delays in (
        (Job("x", 0, 1000, 9, 9, ttft_s=0.9), True),
        (Job("x", 0, 1000, 9, 9, ttft_s=5.0), False),
        (Job("x", 1, 1000, 9, 9, ttft_s=0.9), False),
        (Job("x", 2, 1000, 9, 9), False),
    ):
        state = WorkerState(Worker(jobs=[other]).load())
        later = forecast(state, ask).start_s - state.lag_s > alone.start_s + 0.01
        assert later == delays


def test_a_reservation_counts_until_the_report_shows_it() -> None:
    """What was admitted since the report is in the way like what the report shows, and never counted twice."""
    ask = Ask(tier=0, prefill=400, outputs=50, first_token_in_s=10.0)
    promise = Reservation(id="x", worker="w", tier=0, prompt_tokens=2000, max_tokens=50, deadline_s=104.0)
    shown = Worker(jobs=[Job("x", 0, 2000, 50, 50, ttft_s=4.0)]).load()
    reserved = forecast(WorkerState(Worker().load(), [promise], now=100.0), ask)
    both = forecast(WorkerState(shown, [promise], now=100.0), ask)
    assert both == forecast(WorkerState(shown), ask)
    lag = WorkerState(shown).lag_s
    assert reserved.first_token_s == pytest.approx(both.first_token_s - lag)


def test_shared_prefixes_are_not_counted_for_each_row() -> None:
    """When the blocks in use are fewer than the contexts, rows share them, and more fit."""
    worker = Worker(blocks=600)
    for i in range(8):
        job = Job(f"d{i}", 0, 1000, 100, 100)
        job.computed, job.generated, job.slot = 1000, 1, True
        worker.jobs.append(job)
    ask = Ask(tier=0, prefill=1000, outputs=50)
    apart = forecast(WorkerState(worker.load()), ask)
    shared = worker.load()
    fields = {name: getattr(shared, name) for name in shared.__struct_fields__}
    together = forecast(WorkerState(type(shared)(**{**fields, "free_blocks": 500})), ask)
    assert (apart.cause, apart.hold_s > 0) == (Reason.kv_exhausted, True)
    assert together.hold_s == 0


def test_flex_rows_give_up_slots_and_blocks_to_a_contract() -> None:
    """A worker full of flex holds a candidate with a contract back no longer than the steps in flight."""
    worker = Worker(slots=8, blocks=600)
    for i in range(8):
        job = Job(f"f{i}", int(Tier.flex), 1000, 500, 500)
        job.computed, job.generated, job.slot = 1000, 1, True
        worker.jobs.append(job)
    ask = {"prefill": 500, "outputs": 100}
    contract = WorkerState(worker.load())
    assert forecast(contract, Ask(tier=0, first_token_in_s=1.0, **ask)).hold_s == 0
    flex = WorkerState(worker.load(), contract=False)
    assert forecast(flex, Ask(tier=2, **ask)).hold_s > 1


def test_a_preempted_row_needs_a_slot_again_however_much_of_its_kv_is_kept() -> None:
    """Two slots end after 10 and 30 outputs, and a preempted row comes back into the first: a newcomer behind it gets
    the second."""
    rows = [RequestLoad(str(left), 1, 1, 100, 5, left, None, None, 0.0) for left in (10, 30)]
    kept = RequestLoad("p", 1, 1, 100, 5, 200, None, None, 0.0, waits=True)
    load = msgspec.structs.replace(Worker(slots=2).load(), free_slots=0)
    ask = Ask(tier=1, prefill=100, outputs=50)
    alone = forecast(WorkerState(msgspec.structs.replace(load, requests=rows)), ask)
    state = WorkerState(msgspec.structs.replace(load, requests=[*rows, kept]))
    assert len(state.kept) == 2
    behind = forecast(state, ask)
    assert alone.hold_s == pytest.approx(10 * state.decode_s, rel=0.05)
    assert behind.hold_s == pytest.approx(30 * state.decode_s, rel=0.1)
