"""Admission as a whole: what it reserves, who waits and in which order, and what becomes of whole loads."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from door import Arrival, Door, poisson, request
from worker_sim import COEFFICIENTS

from policies.admission import Admission, Admit, Defer, MaxTokens, Oracle, Policy, Reason, Refuse
from policies.vocabulary import RequestLoad, WorkerLoad

#: Requests/s that the worker of `Door` completes when flooded without admission.
CAPACITY = 15.0


def load(
    worker: str = "w", requests: list[RequestLoad] | None = None, *, slots: int = 32, model: str = "m"
) -> WorkerLoad:
    live = requests or []
    started = sum(r.context > 0 for r in live)
    held = sum(-(-r.context // 16) for r in live)
    return WorkerLoad(
        worker, "m", 4000, 4000 - held, slots, slots - started, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, live
    )


def rows(count: int, *, tier: int = 0, left: int = 300, context: int = 500) -> list[RequestLoad]:
    return [RequestLoad(f"r{i}", tier, 1, context, 5, left, None, None, 0.0) for i in range(count)]


def test_a_burst_between_two_reports_is_counted_request_by_request() -> None:
    """What was admitted since the last report is load for the next decision; its end gives it back."""
    door = Admission()
    door.report("m", [load()], 0.0)
    verdicts = [door.arrive(request(f"a{i}", prompt=2000), 0.0) for i in range(40)]
    admitted = sum(isinstance(verdict, Admit) for verdict in verdicts)
    assert 5 <= admitted <= 9  # a prompt takes about 115 ms
    assert all(isinstance(verdict, Refuse) for verdict in verdicts[admitted:])
    door.settled("a0", "gold", outputs=5, is_whole=True, ttft_kept=True, now=0.1)
    assert isinstance(door.arrive(request("b", prompt=1500), 0.1), Admit)


def test_what_a_report_shows_is_not_counted_twice() -> None:
    """A reservation ends with the report that shows the request, on whichever worker it is."""
    door = Admission()
    door.report("m", [load("v"), load("w")], 0.0)
    verdict = door.arrive(request("a", prompt=4000), 0.0)
    assert isinstance(verdict, Admit)
    other = "w" if verdict.worker == "v" else "v"
    shown = [RequestLoad("a", 0, 1, 4000, 1, 99, None, 0.05, 0.0)]
    door.report("m", [load(other, shown)], 0.1, whole=False)
    both = [door.arrive(request(f"b{i}", prompt=4000, ttft_s=0.4), 0.1) for i in range(2)]
    assert {verdict.worker for verdict in both if isinstance(verdict, Admit)} == {"v", "w"}


def test_without_a_fresh_report_there_is_no_worker() -> None:
    """A model of which nothing was heard, or not for long, is refused with the time to load it."""
    door = Admission(Policy(load_time_s=7.0), load_stale_s=2.0)
    for now in (0.0, 5.0):
        verdict = door.arrive(request("a"), now)
        assert isinstance(verdict, Refuse)
        assert (verdict.reason, verdict.retry_after_s) == (Reason.no_worker, 7.0)
        door.report("m", [load()], 1.0)
    door.report("m", [load()], 5.0)
    assert isinstance(door.arrive(request("a"), 6.0), Admit)
    door.report("m", [], 6.0)
    assert isinstance(door.arrive(request("b"), 6.0), Refuse)


def test_the_deferred_start_in_their_order_when_there_is_room() -> None:
    """Nobody overtakes: a newcomer waits behind the deferred, and all are decided in order of class and deadline."""
    door = Admission(lengths=MaxTokens())
    door.report("m", [load(requests=rows(32, left=20))], 0.0)
    order = [("late", 9.0), ("early", 5.0), ("middle", 7.0)]
    for name, ttft_s in order:
        assert isinstance(door.arrive(request(name, ttft_s=ttft_s), 0.0), Defer)
    assert len(door) == 3
    assert "late" in door
    assert door.reexamine("m", 0.05) == []
    door.report("m", [load(requests=rows(30, left=200))], 0.1)
    decided = door.reexamine("m", 0.1)
    assert [one.request.id for one in decided] == ["early", "middle"]
    assert all(isinstance(one.verdict, Admit) for one in decided)
    assert len(door) == 1


def test_a_deadline_that_passes_is_told_at_its_time() -> None:
    """`wake_at` is the instant from which `expire` has the refusal."""
    door = Admission()
    door.report("m", [load(requests=rows(32, tier=2, left=300))], 0.0)
    assert door.wake_at() == inf
    verdict = door.arrive(request("f", tier=2, ttft_s=None, tpot_s=None), 0.0, patience_s=20.0)
    assert isinstance(verdict, Defer)
    assert verdict.deadline_s <= door.wake_at() <= 20.1
    assert door.expire(verdict.deadline_s) == []
    (one,) = door.expire(door.wake_at())
    assert isinstance(one.verdict, Refuse)
    assert one.verdict.reason is Reason.deadline_exceeded
    assert (len(door), door.wake_at()) == (0, inf)


def test_who_gives_up_its_place_is_told() -> None:
    """A full queue turns away the least urgent: the newcomer at once, another with the next `expire`."""
    door = Admission(Policy(queue_size=1, queue_share=1.0))
    door.report("m", [load(requests=rows(32, left=20))], 0.0)
    assert isinstance(door.arrive(request("a", ttft_s=5.0), 0.0), Defer)
    late = door.arrive(request("b", ttft_s=9.0), 0.0)
    assert isinstance(late, Refuse)
    assert late.reason is Reason.queue_full
    assert isinstance(door.arrive(request("c", ttft_s=4.0), 0.0), Defer)
    assert door.wake_at() == -inf
    (one,) = door.expire(0.0)
    assert one.request.id == "a"
    assert isinstance(one.verdict, Refuse)
    assert door.cancel("c", 0.0) is None
    assert len(door) == 0


def test_a_cancelled_request_leaves_nothing() -> None:
    """Admitted, its tenant is told, and what it reserved is free at once."""
    door = Admission()
    door.report("m", [load()], 0.0)
    assert isinstance(door.arrive(request("a", prompt=8000, ttft_s=1.0), 0.0), Admit)
    assert isinstance(door.arrive(request("b", prompt=8000, ttft_s=0.8), 0.0), Refuse)
    assert door.cancel("a", 0.0) == "gold"
    assert isinstance(door.arrive(request("c", prompt=8000, ttft_s=0.8), 0.0), Admit)


def test_what_a_gateway_has_under_way_is_known_after_a_restart() -> None:
    """What nobody confirms for a while is given back, and a word that an end overtook brings nothing back."""
    door = Admission()
    door.settled("a", "t", outputs=1, is_whole=True, now=0.0)
    entries = [("a", "t", 5), ("b", "t", 7)]
    assert door.live(entries, 1.0) == [("b", "t", 7)]
    assert door.live(entries, 2.0) == []
    assert door.abandoned(8.0) == [("b", "t")]
    assert door.live(entries, 9.0) == [("b", "t", 7)], "what was only silent for a while is counted again"


def test_explaining_changes_nothing() -> None:
    """A dry run is answered as the next arrival would be."""
    door = Admission()
    door.report("m", [load(requests=rows(32, left=20))], 0.0)
    explained = [door.explain(request("a", ttft_s=5.0), 0.0) for _ in range(3)]
    assert len(door) == 0
    assert all(verdict == explained[0] for verdict in explained)
    assert door.arrive(request("a", ttft_s=5.0), 0.0) == explained[0]


def test_true_lengths_admit_what_max_tokens_would_not() -> None:
    """The oracle knows that the rows end soon; with noise it is off by as much, for each request always the same."""
    live = rows(32, left=2000, context=1500)
    wanted = request("a", max_tokens=2000, ttft_s=3.0)
    truth = {f"r{i}": 10 for i in range(32)} | {"a": 10}
    outcomes = []
    for lengths in (MaxTokens(), Oracle(truth)):
        door = Admission(lengths=lengths)
        door.report("m", [load(requests=live)], 0.0)
        outcomes.append(type(door.arrive(wanted, 0.0)))
    assert outcomes == [Refuse, Admit]
    noisy = Oracle(truth, sigma=0.5, seed=1)
    lengths_of = [noisy.remaining(RequestLoad(f"r{i}", 0, 1, 9, 0, 999, None, None, 0.0), 0.5) for i in range(32)]
    assert len(set(lengths_of)) > 5
    assert lengths_of[0] == noisy.remaining(RequestLoad("r0", 0, 1, 9, 0, 999, None, None, 0.0), 0.9)


def test_without_control_everybody_comes_in() -> None:
    """Kind none: to the emptiest worker, with its deadlines as they are."""
    door = Admission(Policy(kind="none"))
    door.report("m", [load("full", rows(32, left=500)), load("empty")], 0.0)
    verdicts = [door.arrive(request(f"a{i}", prompt=4000, ttft_s=0.1), 0.0) for i in range(50)]
    assert all(isinstance(verdict, Admit) for verdict in verdicts)
    assert {verdict.worker for verdict in verdicts if isinstance(verdict, Admit)} == {""}, "placement is not its affair"
    assert verdicts[0].ttft_s == 0.1  # type: ignore[union-attr]


@pytest.mark.parametrize("factor", [0.7, 1.5, 4.0])
def test_the_admitted_keep_their_contract(factor: float) -> None:
    """Below the capacity all are admitted; above, at least 99 % of the admitted are met, and the capacity is used."""
    door = Door(Admission())
    warm = [replace(a, patience_s=9.0) for a in poisson(9, 3.0, 10.0, "warm")]
    door.play([*warm, *poisson(3, factor * CAPACITY, 30.0, "gold", start_s=10.0)])
    jobs = [job for name, job in door.jobs.items() if name.startswith("gold/")]
    assert sum(job.met() for job in jobs) / len(jobs) >= 0.99
    if factor < 1:
        assert door.refused("gold") == 0
    else:
        assert len(jobs) / 30.0 >= 0.9 * CAPACITY


def test_the_same_seed_decides_the_same() -> None:
    """Decisions depend on what was heard and on the seed alone."""
    arrivals: list[Arrival] = poisson(5, 2 * CAPACITY, 5.0, "gold")
    doors = [Door(Admission(seed=4)) for _ in range(2)]
    for door in doors:
        door.play(arrivals)
    assert doors[0].verdicts == doors[1].verdicts


def test_a_lower_class_leaves_the_pace_of_a_higher_one_possible() -> None:
    """While a higher class comes with a tight pace, a lower one does not grow the batch beyond what it could join."""
    live = rows(25, tier=1, context=3000)
    busy = WorkerLoad("w", "m", 9000, 4000, 64, 39, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, live)
    relaxed = request("b", tier=1, tpot_s=0.1)
    outcomes = []
    for tight in (0.1, 0.017):
        door = Admission(Policy(lower_pace=0.8))
        door.report("m", [busy], 0.0)
        door.arrive(request("a", tpot_s=tight), 0.0)
        door.cancel("a", 0.0)
        outcomes.append(type(door.arrive(relaxed, 1.0)))
    assert outcomes[0] is Admit
    assert outcomes[1] is not Admit
