"""Every order by name: who is next, and nobody last forever."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
from harness import FixedStepTime, make_request
from hypothesis import given
from hypothesis import strategies as st

from policies.config import Order, SchedulerConfig
from policies.order import DeviceCost, waiting_queue
from policies.order.fair import FairShare
from policies.order.fair_queues import FairQueue
from policies.order.mlfq import FeedbackQueue
from policies.rows import Row

COST = DeviceCost(FixedStepTime(), tokens_per_step=64)


class Queue:
    """A queue of the named order, with rows made to order."""

    def __init__(self, order: str, **options: Any) -> None:
        self.resident: dict[str, int] = {}
        config = SchedulerConfig(order=order, **options)  # type: ignore[arg-type]
        self.queue = waiting_queue(
            config, FixedStepTime(), tokens_per_step=64, resident=lambda row: self.resident.get(row.request.id, 0)
        )
        self.rows: dict[str, Row] = {}

    def add(self, name: str, *, now: float = 0.0, prompt: int = 4, preempted: bool = False, **request: Any) -> Row:
        row = Row(make_request(name, [1] * prompt, 100, **request), sequence=len(self.rows) + 1, now=now)
        row.preemptions = int(preempted)
        self.rows[name] = row
        self.queue.push(row, now)
        return row

    def start(self, now: float = 0.0) -> str:
        head = self.queue.head(now)
        assert head is not None
        self.queue.started(head[0])
        return head[0].request.id

    def drain(self, now: float = 0.0) -> str:
        return "".join(self.start(now) for _ in range(len(self.queue)))


@pytest.mark.parametrize("order", get_args(Order))
def test_rows_leave_and_are_passed_in_every_order(order: str) -> None:
    """A removed row is gone, one set aside is looked past and keeps its place, and all are served once."""
    q = Queue(order)
    for i, name in enumerate("abcdefg"):
        q.add(name, tier=i % 3, ttft_s=[None, 5.0, 2.0][i % 3], tenant=name if i < 4 else "t")
    plain = Queue(order)
    for i, name in enumerate("abcdefg"):
        plain.add(name, tier=i % 3, ttft_s=[None, 5.0, 2.0][i % 3], tenant=name if i < 4 else "t")
    expected = [name for name in plain.drain() if name != "d"]
    q.queue.remove(q.rows["d"])
    seen = []
    for _ in range(3):
        head = q.queue.head(0.0)
        assert head is not None
        seen.append(head[0].request.id)
        q.queue.set_aside(head[0])
    q.queue.restore(0.0)
    assert seen == expected[:3]
    assert list(q.drain()) == expected
    assert q.queue.head(0.0) is None


def test_fcfs_is_by_arrival_and_who_was_preempted_keeps_its_place() -> None:
    """Neither class nor deadline matters; the latest arrival gives way first."""
    q = Queue("fcfs")
    first = q.add("a", tier=2)
    q.start()
    q.add("b", tier=0)
    q.add("c", ttft_s=0.1)
    first.preemptions = 1
    q.queue.push(first, 1.0)
    assert q.queue.standing(q.rows["c"]) > q.queue.standing(q.rows["b"]) > q.queue.standing(first)
    assert q.drain(1.0) == "abc"


def test_priority_ages_by_a_class_every_so_often() -> None:
    """The key is class less the whole aging periods waited, then arrival."""
    q = Queue("priority", aging_s=10.0)
    q.add("flex", tier=2, now=0.0)
    q.add("default", tier=1, now=5.0)
    q.add("new", tier=0, now=14.0)
    assert [q.queue.rank(q.rows[name], 14.0)[0] for name in ("flex", "default", "new")] == [1, 1, 0]
    assert q.start(14.0) == "new"
    q.add("newer", tier=0, now=21.0)
    assert q.start(21.0) == "flex"
    assert q.start(21.0) == "default"
    assert q.queue.standing(q.rows["flex"]) > q.queue.standing(q.rows["default"])


def test_priority_starves_nobody() -> None:
    """Whoever has waited for class times aging goes before all that come later."""
    q = Queue("priority", aging_s=1.0)
    q.add("flex", tier=2, now=0.0)
    for i in range(40):
        q.add(f"p{i}", tier=0, now=0.1 * i)
        if q.start(0.1 * i) == "flex":
            assert 0.1 * i == pytest.approx(2.0)
            return
    raise AssertionError("not started")


def test_edf_serves_the_hopeless_first_and_those_without_a_deadline_last() -> None:
    """Plain EDF: the deadline alone, met or not; ties and the rest by arrival."""
    q = Queue("edf")
    for name, ttft_s in (("d", None), ("b", 2.0), ("e", None), ("a", 0.5), ("c", 3.0)):
        q.add(name, ttft_s=ttft_s, tier=int(name == "a"))
    assert q.drain(now=2.5) == "abcde"


def test_least_slack_counts_the_prompt() -> None:
    """Of two equal deadlines the longer prompt goes first, and of unequal ones it may."""
    q = Queue("least-slack")
    q.add("c", ttft_s=2.0, prompt=4)
    q.add("a", ttft_s=2.0, prompt=640)
    q.add("b", ttft_s=2.0 - 0.05, prompt=4)
    assert COST.alone_s(640, 0) - COST.alone_s(4, 0) > 0.05
    assert q.drain() == "abc"


def test_vtc_edf_is_fair_across_tenants_and_by_deadline_within() -> None:
    """Inside a tier; the tier is strict. A flood with tight deadlines makes only its own tenant late."""
    q = Queue("vtc-edf")
    for i in range(10):
        q.add(f"f{i}", tenant="flood", ttft_s=1.0 - 0.05 * i)
    for i in range(3):
        q.add(f"g{i}", tenant="good", ttft_s=9.0 - i)
    q.add("p", tenant="flood", tier=0)
    order = [q.start() for _ in range(7)]
    assert order == ["p", "f9", "g2", "f8", "g1", "f7", "g0"]


def test_lpm_takes_the_longest_resident_prefix_first_with_patience() -> None:
    """Hits while they are resident; but the longest waiting claims one start in `patience_share`."""
    q = Queue("lpm", patience_s=5.0, patience_share=2)
    q.add("none", prompt=64)
    for i in range(6):
        q.add(f"hit{i}", prompt=64, now=1.0)
        q.resident[f"hit{i}"] = 16 * (i % 3)
    assert [q.start(2.0) for _ in range(2)] == ["hit2", "hit5"]
    assert [q.start(9.0) for _ in range(3)] == ["none", "hit1", "hit0"]


def test_lpm_falls_back_to_arrival_in_a_long_queue() -> None:
    """Above 128 waiting rows nobody's prefix is looked at."""
    q = Queue("lpm")
    for i in range(130):
        q.add(str(i))
    q.resident["129"] = 1000
    assert [q.start() for _ in range(3)] == ["0", "1", "129"]


@pytest.mark.parametrize("order", ["contract", "edf", "least-slack", "lpm", "vtc-edf"])
@given(data=st.data())
def test_the_wait_is_bounded_in_orders_that_could_starve(order: str, data: st.DataObject) -> None:
    """With m rows that wait longer, a patient row starts within share · (m + 1) starts, whatever arrives."""
    share, ahead = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 6))
    q = Queue(order, patience_s=1.0, patience_share=share)
    for i in range(ahead):
        q.add(f"ahead{i}", tier=data.draw(st.integers(0, 2)))
    q.add("patient", tier=2)
    for i in range(share * (ahead + 1)):
        q.add(f"flood{i}", now=10.0, tier=0, ttft_s=1.0, tenant=f"new{i}")
        q.resident[f"flood{i}"] = 4
        if q.start(10.0) == "patient":
            return
    raise AssertionError("not started")


# Fair share


def test_shared_prefixes_are_charged_for_what_is_computed_alone() -> None:
    """A tenant whose prompts are cached starts as many more of them as they are cheaper."""
    q = Queue("vtc")
    for i in range(60):
        q.add(f"c{i}", tenant="cached", prompt=64)
        q.add(f"u{i}", tenant="uncached", prompt=64)
    for name, row in q.rows.items():
        row.computed = 48 if name.startswith("c") else 0
    started = Counter(q.start()[0] for _ in range(50))
    assert started == {"c": 40, "u": 10}


def test_no_step_of_a_running_pair_of_tenants_is_counted_twice() -> None:
    """The charges of all rows of a decode step add up to the time of that step."""
    step_s = FixedStepTime().predict(10, 0, 10 * 500, 10)
    assert sum(COST.outputs_s(1, 500, 10) for _ in range(10)) == pytest.approx(step_s)


class Unlifted(FairShare):
    """VTC without the lift."""

    __slots__ = ()

    def _lift(self, tenant: str) -> None:
        self._counters.setdefault(tenant, 0.0)


def starts_after_absence(fair: FairShare) -> Counter[str]:
    """Tenant a is served alone for long; then b comes with a flood: who gets the next 20 starts?"""
    queue = FairQueue(COST)
    queue.fair = fair
    serial = 0

    def add(tenant: str) -> None:
        nonlocal serial
        serial += 1
        queue.push(Row(make_request(str(serial), [1] * 64, 100, tenant=tenant), sequence=serial, now=0.0), 0.0)

    def start() -> str:
        head = queue.head(0.0)
        assert head is not None
        queue.started(head[0])
        return head[0].request.tenant

    for _ in range(80):
        add("a")
    for _ in range(40):
        start()
    for _ in range(40):
        add("b")
    return Counter(start() for _ in range(20))


def test_the_lift_keeps_a_tenant_that_was_away_from_flooding() -> None:
    """Without it, b claims all that a got while b had asked for nothing; with it they share from then on."""
    assert starts_after_absence(Unlifted(COST)) == {"b": 20}
    assert starts_after_absence(FairShare(COST)) == {"a": 10, "b": 10}


# Feedback queue


def job(queue: FeedbackQueue, name: str, *, sequence: int, prompt: int = 4, now: float = 0.0) -> Row:
    row = Row(make_request(name, [1] * prompt, 100), sequence=sequence, now=now)
    queue.push(row, now)
    return row


def feedback(**options: Any) -> FeedbackQueue:
    return FeedbackQueue(COST, **({"quantum_s": 0.01, "levels": 12, "starvation_s": 3.0} | options))


def test_a_long_prompt_skips_the_levels_in_which_it_would_not_be_through() -> None:
    """It joins the highest level whose quantum is at least its prefill, and short ones go before it."""
    queue = feedback()
    long, short = job(queue, "long", sequence=1, prompt=640), job(queue, "short", sequence=2)
    assert COST.alone_s(640, 0) == pytest.approx(0.144)
    assert [queue.rank(row, 0.0).tier for row in (long, short)] == [4, 0]
    assert queue.ahead(2, 0.0) == [short, long]


def served_at_levels(queue: FeedbackQueue, *, step_s: float, steps: int) -> list[int]:
    row = job(queue, "a", sequence=1)
    levels = []
    for _ in range(steps):
        levels.append(queue.rank(row, 0.0).tier)
        queue.ran([row], step_s, 0.0)
    return [levels.count(level) for level in range(max(levels) + 1)]


class Unreset(FeedbackQueue):
    """A feedback queue that forgets to set back the consumed time on demotion."""

    def _move(self, row: Row, level: int) -> None:
        consumed = self._jobs[row].consumed_s
        super()._move(row, level)
        self._jobs[row].consumed_s = consumed


def test_a_demoted_row_has_the_whole_quantum_of_its_new_level() -> None:
    """Without the reset it brings along what it consumed above, and gets half of every later quantum: a job that ran
    its due is overtaken by jobs that came as late and as long as it."""
    options: dict[str, Any] = {"quantum_s": 0.01, "levels": 4, "starvation_s": 1e9}
    naive = served_at_levels(Unreset(COST, **options), step_s=0.00499, steps=40)
    assert naive == [3, 2, 4, 31]  # of quanta of 2, 4 and 8 steps, and the last without end
    assert served_at_levels(FeedbackQueue(COST, **options), step_s=0.00499, steps=40) == [3, 5, 9, 23]


def test_who_keeps_its_quantum_keeps_its_place() -> None:
    """A row that ran goes before those that came to its level later, until it is demoted behind them."""
    queue = feedback()
    a, b = job(queue, "a", sequence=1), job(queue, "b", sequence=2)
    queue.ran([a], 0.006, 0.0)
    assert queue.ahead(2, 0.0) == [a, b]
    queue.ran([a], 0.006, 0.0)
    assert queue.ahead(2, 0.0) == [b, a]


def test_who_has_not_run_for_long_goes_to_the_top() -> None:
    """After `starvation_s` without a step, noticed within an eighth of it; waiting or sitting out alike."""
    queue = feedback()
    waiting = job(queue, "w", sequence=1, prompt=640)
    sitting = job(queue, "s", sequence=2, prompt=640)
    queue.started(sitting)
    assert queue.head(2.9) is not None
    assert queue.rank(waiting, 2.9).tier == queue.rank(sitting, 2.9).tier == 4
    queue.head(3.4)
    assert queue.rank(waiting, 3.4).tier == queue.rank(sitting, 3.4).tier == 0
    head = queue.head(3.4)
    assert head is not None
    assert head[0] is waiting


# Shedding


def test_only_who_never_ran_and_cannot_make_it_is_hopeless() -> None:
    """Alone and from now on, with what is resident of its prompt."""
    q = Queue("fcfs", shed_hopeless=True)
    for name in ("lost", "cached", "none", "ran"):
        row = q.add(name, prompt=640, ttft_s=None if name == "none" else 1.0)
        row.first_scheduled_at = 0.1 if name == "ran" else None
    q.queue.remove(q.rows["ran"])
    q.queue.push(q.rows["ran"], 0.2)
    q.resident["cached"] = 576
    latest = 1.0 - COST.alone_s(640, 0)
    assert q.queue.hopeless(latest) == []
    at = q.queue.hopeless_at()
    assert q.queue.hopeless(at) == [q.rows["lost"]]
    assert latest < at < q.queue.hopeless_at() == pytest.approx(1.0 - COST.alone_s(64, 576))
    assert q.queue.hopeless(2.0) == [q.rows["cached"]]
    assert q.queue.hopeless(9.0) == []
