"""Which few of many workers a decision looks at."""

from __future__ import annotations

from door import request
from hypothesis import given
from hypothesis import strategies as st
from worker_sim import COEFFICIENTS

from policies.admission import Admission, Admit, Policy, Refuse, Reservation
from policies.admission.fleet import Fleet
from policies.vocabulary import RequestLoad, WorkerLoad


def load(worker: str, prompts: int, *, tier: int = 0, due: float = 9.0) -> WorkerLoad:
    queue = [RequestLoad(f"{worker}/{i}", tier, 500, 0, 0, 100, due, None, 0.0) for i in range(prompts)]
    return WorkerLoad(worker, "m", 40_000, 40_000, 64, 64, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, queue)


def fleet(queues: list[int], *, tier: int = 0) -> Fleet:
    workers = Fleet()
    for i, prompts in enumerate(queues):
        workers.update(load(f"w{i:03}", prompts, tier=tier), [])
    return workers


def names(loads: list[WorkerLoad]) -> list[str]:
    return [one.worker for one in loads]


def test_the_list_is_the_emptiest_and_the_fullest_in_time() -> None:
    """Of a hundred: four that are empty, and the last four whose wait is within half of the time."""
    workers = fleet(list(range(100)))
    found = names(workers.shortlist(8, binding=True, time_s=2.0))
    assert found[:4] == ["w000", "w001", "w002", "w003"]
    waits = [workers.estimate(name, binding=True)[0] for name in found[4:]]
    assert all(wait < 1.0 for wait in waits)
    last = int(found[-1][1:])
    assert workers.estimate(f"w{last + 1:03}", binding=True)[0] >= 1.0


def test_where_no_more_are_in_time_the_next_emptiest_fill_the_list() -> None:
    """It is as long as it may be."""
    assert names(fleet([5 + i for i in range(20)]).shortlist(8, binding=True, time_s=0.01)) == [
        f"w{i:03}" for i in range(8)
    ]


def test_a_cached_prefix_is_looked_at() -> None:
    """Wherever its worker stands."""
    found = fleet(list(range(100))).shortlist(
        8, binding=True, time_s=2.0, cached={"w099": 400, "w098": 16, "gone": 900}
    )
    assert "w099" in names(found)
    assert len(found) == 8


def test_best_effort_delays_only_best_effort() -> None:
    """Queues without a contract count for newcomers without one alone."""
    workers = fleet([9, 0], tier=2)
    assert workers.estimate("w000", binding=True) == workers.estimate("w001", binding=True)
    assert workers.estimate("w000", binding=False)[0] > workers.estimate("w001", binding=False)[0]


@given(
    st.lists(
        st.tuples(st.sampled_from(["report", "pend", "repend", "remove"]), st.integers(0, 5), st.integers(0, 9)),
        max_size=40,
    )
)
def test_the_order_is_that_of_the_estimates_whatever_happens(changes: list[tuple[str, int, int]]) -> None:
    """Reports, reservations and leaving, in any order, leave every worker once and in its place."""
    workers, there = Fleet(), set[str]()
    for what, number, amount in changes:
        name = f"w{number}"
        claim = Reservation(id=str(amount), worker=name, tier=amount % 3, prompt_tokens=100 * amount, max_tokens=10)
        if what == "report":
            workers.update(load(name, amount), [claim])
            there.add(name)
        elif what == "pend":
            workers.pend(claim)
        elif what == "repend":
            workers.repend(name, [claim] * amount)
        else:
            workers.remove(name)
            there.discard(name)
    for binding in (True, False):
        found = names(workers.shortlist(10, binding=binding))
        assert sorted(found) == sorted(there)
        waits = [workers.estimate(name, binding=binding)[0] for name in found]
        assert waits == sorted(waits)


def test_the_shortlist_admits_what_the_whole_fleet_would() -> None:
    """With a few of 60 workers free, each of as many urgent requests finds one."""
    admission = Admission(Policy(shortlist=8))
    admission.report("m", [load(f"w{i:03}", 0 if i % 10 == 7 else 40, due=0.2) for i in range(60)], 0.0)
    verdicts = [admission.arrive(request(f"a{i}", prompt=4000, ttft_s=0.35), 0.0) for i in range(7)]
    chosen = [verdict.worker for verdict in verdicts if isinstance(verdict, Admit)]
    assert sorted(chosen) == [f"w{i:03}" for i in range(7, 60, 10)]
    assert isinstance(verdicts[-1], Refuse)


def test_a_contract_without_room_is_relegated_only_where_the_policy_says_so() -> None:
    """As best effort, with nothing promised; what is above its rate is in any case."""
    urgent = request("a", prompt=1000, ttft_s=0.3)
    for relegate in (False, True):
        admission = Admission(Policy(relegate=relegate, ladder=None))
        admission.report("m", [load("w", 40, due=0.2)], 0.0)
        verdict = admission.arrive(urgent, 0.0)
        assert isinstance(verdict, Admit if relegate else Refuse)
        if isinstance(verdict, Admit):
            assert (verdict.relegated, verdict.tier, verdict.ttft_s) == (True, 2, None)
    above = Admission()
    above.report("m", [load("w", 0)], 0.0)
    verdict = above.arrive(urgent, 0.0, committed=False)
    assert isinstance(verdict, Admit)
    assert verdict.relegated
