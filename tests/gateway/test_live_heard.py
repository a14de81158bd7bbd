"""What is told on the bus is numbered, and what was missed is asked for once more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actors.messages import AdmissionFacts, DecisionFact, SchedulerFacts, StepFact
from gateway.live.heard import MOST_DECISIONS, MOST_STEPS, Heard


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def told(sender: str = "scheduler.m", run: int = 1) -> Any:
    return SimpleNamespace(sender=sender, run=run)


def steps(first: int, count: int, *, model: str = "m", whole: bool = False) -> SchedulerFacts:
    kept = [StepFact("w0", number, 1000.0 + number, 16, 3, 4, 0.025, 0.024) for number in range(first, first + count)]
    return SchedulerFacts(model, first, kept, [], {}, [], whole)


def decisions(first: int, count: int, *, whole: bool = False) -> AdmissionFacts:
    kept = [
        DecisionFact(
            1000.0, f"r{i}", "acme", 0, "m", "refused", "overloaded", "no", 1.0, 0.5, None, None, 0.5, 2.0, None, 7, 9
        )
        for i in range(first, first + count)
    ]
    return AdmissionFacts(first, kept, [], [], whole)


def test_what_is_told_twice_is_taken_once() -> None:
    """Another gateway asked for all: everybody hears it, and takes what it lacks."""
    heard = Heard(Clock())
    heard.heard_scheduler(steps(1, 5), told())
    heard.heard_scheduler(steps(1, 8, whole=True), told())
    heard.heard_scheduler(steps(9, 2), told())
    assert [step.number for step in heard.steps(0)] == list(range(1, 11))
    assert [step.number for step in heard.steps(8)] == [9, 10]
    assert not heard.lacks


def test_a_gap_is_closed_by_asking_for_all() -> None:
    """Until that comes nothing is taken, so that the order stays; then all that is missing is."""
    heard = Heard(Clock())
    heard.heard_scheduler(steps(1, 3), told())
    heard.heard_scheduler(steps(6, 2), told())
    assert heard.lacks
    heard.lacks = False  # it is asked for
    heard.heard_scheduler(steps(8, 1), told())
    assert not heard.lacks
    assert heard.steps_heard == 3
    heard.heard_scheduler(steps(1, 9, whole=True), told())
    assert [step.number for step in heard.steps(0)] == list(range(1, 10))


def test_a_lost_answer_is_asked_for_again() -> None:
    """After some messages that do not follow on what is known."""
    heard, asked = Heard(Clock()), 0
    for first in range(10, 30):
        heard.heard_scheduler(steps(first, 1), told())
        asked += heard.lacks
        heard.lacks = False
    assert 3 <= asked <= 5


def test_who_listens_from_the_middle_asks_for_the_beginning() -> None:
    """The first word that is heard is rarely the first that was said."""
    heard = Heard(Clock())
    heard.heard_admission(decisions(51, 2), told("admission.a0"))
    assert heard.lacks
    assert heard.decisions(0) == []
    heard.heard_admission(decisions(1, 52, whole=True), told("admission.a0"))
    assert [row.sequence for row in heard.decisions(0)] == list(range(1, 53))


def test_what_is_not_kept_any_more_is_done_without() -> None:
    """All that is kept may begin late: then that is all there is."""
    heard = Heard(Clock())
    heard.heard_scheduler(steps(700, 50, whole=True), told())
    heard.heard_scheduler(steps(750, 1), told())
    assert not heard.lacks
    assert len(heard.steps(0)) == 51


def test_a_new_run_begins_anew_and_sequences_go_on() -> None:
    """A restarted actor numbers from 1; what viewers get grows on."""
    heard = Heard(Clock())
    heard.heard_admission(decisions(1, 2), told("admission.a0", run=1))
    heard.heard_admission(decisions(1, 3), told("admission.a0", run=2))
    assert [row.sequence for row in heard.decisions(0)] == [1, 2, 3, 4, 5]


def test_what_is_kept_is_bounded() -> None:
    """A slow viewer loses what is beyond it, and nothing else."""
    heard = Heard(Clock())
    for first in range(1, 1001, 100):
        heard.heard_scheduler(steps(first, 100), told())
        heard.heard_admission(decisions(first, 100), told("admission.a0"))
    assert [step.number for step in heard.steps(0)] == list(range(1001 - MOST_STEPS, 1001))
    assert len(heard.decisions(0)) == MOST_DECISIONS
    assert [step.number for step in heard.steps(990)] == list(range(991, 1001))
    assert heard.steps(1000) == []


def test_who_falls_silent_is_not_shown() -> None:
    """Facts are those of a moment: after 2 s nobody knows."""
    clock = Clock()
    heard = Heard(clock)
    heard.heard_scheduler(steps(1, 1), told())
    heard.heard_admission(decisions(1, 1), told("admission.a0"))
    assert heard.is_complete(["m"])
    assert not heard.is_complete(["m", "n"])
    clock.now += 2.5
    assert (heard.schedulers(), heard.admissions()) == ([], [])
    assert not heard.is_complete(["m"])


def test_rows_have_the_units_of_their_names() -> None:
    """Milliseconds, words for tiers, None for what is not known."""
    heard = Heard(Clock())
    heard.heard_scheduler(steps(1, 1), told())
    heard.heard_admission(decisions(1, 1), told("admission.a0"))
    (step,), (decision,) = heard.steps(0), heard.decisions(0)
    assert (step.predicted_ms, step.actual_ms, step.at) == (25.0, 24.0, 1001.0)
    assert (decision.tier, decision.deadline_ms, decision.retry_after_ms) == ("priority", 500.0, 2000.0)
    assert (decision.predicted_ttft_ms, decision.deferred_ms) == (None, None)
