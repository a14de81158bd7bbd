"""The kinds of admission of the literature, each by the rule that it is known for."""

from __future__ import annotations

import pytest
from door import Door, poisson, request
from worker_sim import COEFFICIENTS

from policies.admission import Admission, Admit, Defer, MaxTokens, Policy, Reason, Refuse
from policies.admission.verdict import AdmissionKind
from policies.vocabulary import RequestLoad, WorkerLoad


def load(requests: list[RequestLoad], *, worker: str = "w", blocks: int = 4000) -> WorkerLoad:
    held = sum(-(-r.context // 16) for r in requests)
    started = sum(r.context > 0 for r in requests)
    return WorkerLoad(
        worker, "m", blocks, max(0, blocks - held), 64, 64 - started, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, requests
    )


def row(name: str, *, context: int = 500, generated: int = 5, left: int = 100) -> RequestLoad:
    return RequestLoad(name, 0, 1, context, generated, left, None, None, 0.0)


def prompt(name: str, tokens: int) -> RequestLoad:
    return RequestLoad(name, 0, tokens, 0, 0, 100, None, None, 0.0)


def door(kind: AdmissionKind, loads: list[WorkerLoad], **figures: float) -> Admission:
    admission = Admission(Policy(kind=kind, **figures), lengths=MaxTokens())  # type: ignore[arg-type]
    admission.report("m", loads, 0.0)
    return admission


def test_no_evict_admits_while_the_worst_case_fits() -> None:
    """Prompt and max_tokens of all that was admitted stay within the pool; the next one waits, and starts when one of
    them is over."""
    admission = door("no-evict", [load([], blocks=100)])
    asks = [request(f"a{i}", prompt=300, max_tokens=300, ttft_s=30.0) for i in range(4)]
    verdicts = [admission.arrive(ask, 0.0) for ask in asks]
    assert [type(verdict) for verdict in verdicts] == [Admit, Admit, Defer, Defer]  # 38 blocks each
    admission.settled("a0", "gold", outputs=3, is_whole=True, ttft_kept=True, now=0.5)
    assert [one.request.id for one in admission.reexamine("m", 0.5)] == ["a2"]


def test_no_evict_refuses_what_never_fits_or_comes_too_late() -> None:
    """Above the pool there is no time to come back; when the latest start has passed, it is refused."""
    admission = door("no-evict", [load([row("r", context=1000, left=500)], blocks=100)])
    never = admission.arrive(request("never", prompt=1000, max_tokens=900), 0.0)
    assert isinstance(never, Refuse)
    assert (never.reason, never.retry_after_s) == (Reason.kv_exhausted, None)
    waits = admission.arrive(request("waits", prompt=300, max_tokens=300, ttft_s=1.0), 0.0)
    assert isinstance(waits, Defer)
    (late,) = admission.expire(admission.wake_at())
    assert isinstance(late.verdict, Refuse)
    assert late.verdict.reason is Reason.deadline_exceeded


def test_the_token_gate_closes_above_its_budget() -> None:
    """Whatever the deadlines: while more prompt tokens wait than the budget, nothing comes in."""
    admission = door("token-budget", [load([prompt("p", 900)])], queued_tokens=1000)
    assert isinstance(admission.arrive(request("a", prompt=600), 0.0), Admit)
    refusal = admission.arrive(request("b", prompt=10, ttft_s=100.0), 0.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.reason, refusal.measured, refusal.threshold) == (Reason.queue_full, 1500, 1000)
    assert refusal.retry_after_s is not None
    admission.report("m", [load([prompt("p", 100)])], 0.5)
    assert isinstance(admission.arrive(request("c", prompt=10), 0.5), Admit)


@pytest.mark.parametrize("kind", ["mooncake", "mooncake-naive"])
def test_early_rejection_is_by_the_predicted_first_token(kind: AdmissionKind) -> None:
    """A queue that takes longer than the objective rejects, with the time that is too much; without one it does not."""
    admission = door(kind, [load([prompt(f"p{i}", 4000) for i in range(10)])])
    refusal = admission.arrive(request("a", ttft_s=1.0), 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.ttft_unattainable
    assert refusal.retry_after_s == pytest.approx(refusal.measured - 1.0, rel=0.2)
    assert isinstance(admission.arrive(request("b", ttft_s=None), 0.0), Admit)


def test_naive_early_rejection_looks_at_the_load_of_now() -> None:
    """Prompts that will decode beside the candidate do not count for the naive kind, but do for the other."""
    queue = [prompt(f"p{i}", 300) for i in range(60)]
    pace = 0.0112  # of a batch of a few rows, not of 60
    wanted = request("a", ttft_s=100.0, tpot_s=pace)
    assert isinstance(door("mooncake-naive", [load(queue)]).arrive(wanted, 0.0), Admit)
    refusal = door("mooncake", [load(queue)], uniform_outputs=1000).arrive(wanted, 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.reason is Reason.tpot_unattainable


def test_predicted_early_rejection_lets_in_who_comes_when_the_others_are_gone() -> None:
    """Rows that will have decoded for the uniform time by the end of the prefill do not count, though they run now."""
    rows = [row(f"r{i}", context=2000, generated=95) for i in range(40)]
    wanted = request("a", prompt=4000, ttft_s=10.0, tpot_s=0.0112)
    assert isinstance(door("mooncake-naive", [load(rows)]).arrive(wanted, 0.0), Refuse)
    assert isinstance(door("mooncake", [load(rows)], uniform_outputs=100).arrive(wanted, 0.0), Admit)


@pytest.mark.parametrize("kind", ["none", "no-evict", "token-budget", "mooncake-naive", "mooncake", "contract"])
def test_every_kind_plays_a_whole_load(kind: AdmissionKind) -> None:
    """At four times the capacity: every request is decided once, and nothing is left behind."""
    player = Door(Admission(Policy(kind=kind)))
    arrivals = poisson(3, 60.0, 4.0, "gold") + poisson(4, 10.0, 4.0, "free", contract=False)
    player.play(arrivals)
    assert not any(isinstance(verdict, Defer) for verdict in player.verdicts.values())
    assert len(player.verdicts) == len(arrivals)
    assert (len(player.admission), player.admission.wake_at()) == (0, float("inf"))
    assert bool(player.refused("gold")) == (kind != "none")
