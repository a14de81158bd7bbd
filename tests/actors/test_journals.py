"""What schedulers and admission keep for whoever looks: bounded, numbered, and of the last minutes alone."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.decision_journal import KEPT_DECISIONS, DecisionJournal
from actors.messages import Decision, WaitingFacts
from actors.step_journal import KEPT_STEPS, StepJournal
from actors.step_notes import StepNote
from actors.tenant_journal import PERIOD_S, PERIODS, TenantJournal
from policies.admission import Defer
from policies.admission.reasons import Reason
from policies.rows import Flight, Row
from policies.vocabulary import Request, Sampling, Step, StepDone, pack_tokens

DEFER = Defer(
    worker="w0",
    until_s=1.0,
    deadline_s=2.0,
    predicted_ttft_s=0.4,
    predicted_tpot_s=0.02,
    reason=Reason.ttft_unattainable,
    tier=1,
)


def request(name: str, tenant: str = "acme", *, prompt: int = 20) -> Request:
    return Request(name, 1, tenant, "m", "g0", pack_tokens(range(prompt)), 10, Sampling(), ttft_s=0.5)


def note(number: int, at: float, decoding: list[str], prompts: dict[str, int], *, worker: str = "w0") -> StepNote:
    """A step in which the tenants of `decoding` had a token each, and those of `prompts` so many of a prompt."""
    rows = [Row(request(f"r{i}", tenant), sequence=i, now=0.0) for i, tenant in enumerate([*decoding, *prompts])]
    counts = [1] * len(decoding) + list(prompts.values())
    step = Step(number, [], [], [], [], list(range(len(rows))), counts, [])
    flight = Flight(step, rows, [True] * len(prompts), len(decoding))
    flight.tokens = sum(counts)
    return StepNote(worker, flight, StepDone(number, [], [], [], 0.024), predicted_s=0.025, at=at)


def test_steps_are_told_once_in_order_and_numbered() -> None:
    """A teller asks for what is new; whoever lacks something, for all that is kept."""
    journal = StepJournal()
    for number in range(1, 4):
        journal.stepped(note(number, number * 0.1, ["a", "b"], {"a": 16}))
    first, steps = journal.since(1, unix_offset_s=1000.0)
    assert (first, [step.number for step in steps]) == (2, [2, 3])
    newest = steps[-1]
    assert (newest.decode_tokens, newest.prefill_tokens, newest.rows) == (2, 16, 3)
    assert (newest.at_unix_s, newest.predicted_s, newest.actual_s) == (1000.3, 0.025, 0.024)
    assert journal.since(3, unix_offset_s=0.0) == (4, [])


def test_steps_are_bounded_and_the_oldest_go() -> None:
    """What was told once too late is gone, and its number says so."""
    journal = StepJournal()
    for number in range(1, KEPT_STEPS + 11):
        journal.stepped(note(number, number * 0.01, ["a"], {}))
    first, steps = journal.since(0, unix_offset_s=0.0)
    assert (first, len(steps), steps[0].number) == (11, KEPT_STEPS, 11)


def test_served_tokens_are_those_of_the_last_minute() -> None:
    """By tenant: one a decoding row, and the tokens of each chunk."""
    journal = StepJournal()
    journal.stepped(note(1, 1.0, ["a", "a", "b"], {"c": 30}))
    journal.stepped(note(2, 30.0, ["b"], {}))
    assert journal.served(31.0) == {"a": 2, "b": 2, "c": 30}
    assert journal.served(70.0) == {"b": 1}
    assert journal.served(200.0) == {}


def test_the_rate_of_steps_is_that_of_the_last_seconds() -> None:
    """Of each worker by itself; one that stands still has none."""
    journal = StepJournal()
    for number in range(1, 101):
        journal.stepped(note(number, number * 0.1, ["a"], {}, worker="w0" if number % 2 else "w1"))
    rates = journal.rates(10.0)
    assert rates == pytest.approx({"w0": 5.0, "w1": 5.0}, rel=0.11)
    assert journal.rates(100.0) == {}


def test_a_rate_is_right_where_fewer_seconds_are_kept_than_it_looks_at() -> None:
    """At 1,000 steps a second the journal reaches back 0.4 s."""
    journal = StepJournal()
    for number in range(1, 2 * KEPT_STEPS):
        journal.stepped(note(number, number * 0.001, ["a"], {}))
    assert journal.rates((2 * KEPT_STEPS - 1) * 0.001)["w0"] == pytest.approx(1000, rel=0.02)


def test_a_deferred_request_has_two_decisions_and_waits_between_them() -> None:
    """With the numbers of each, and never the prompt."""
    journal = DecisionJournal()
    journal.deferred(request("r1"), DEFER, 100.0)
    assert journal.waiting(1.5) == [WaitingFacts("acme", "m", 1, 1, 1, [0.5])]
    journal.decided(request("r1"), Decision(outcome="admitted", predicted_ttft_s=0.3, deferred_s=0.2), 100.2)
    assert journal.waiting(1.7) == []
    first, (kept, final) = journal.since(0)
    assert first == 1
    assert (kept.outcome, kept.reason, kept.predicted_ttft_s, kept.deadline_s) == (
        "deferred",
        "ttft_unattainable",
        0.4,
        0.5,
    )
    assert "0.400 s" in kept.message
    assert (final.outcome, final.deferred_s, final.measured, final.prompt_tokens) == ("admitted", 0.2, None, 20)


def test_a_refusal_is_kept_with_reason_message_and_numbers() -> None:
    """As its client got it."""
    journal = DecisionJournal()
    refusal = Decision(
        outcome="refused",
        reason="ttft_unattainable",
        message="too late",
        measured=1.5,
        threshold=0.5,
        retry_after_s=2.0,
        predicted_ttft_s=1.5,
    )
    journal.decided(request("r1"), refusal, 7.0)
    _, (told,) = journal.since(0)
    assert (told.reason, told.message, told.measured, told.threshold) == ("ttft_unattainable", "too late", 1.5, 0.5)
    assert (told.retry_after_s, told.deferred_s, told.at_unix_s) == (2.0, None, 7.0)


def test_decisions_are_bounded_and_hold_no_prompts() -> None:
    """The last two hundred; a request of 100 KB is not kept alive by them."""
    journal = DecisionJournal()
    for i in range(KEPT_DECISIONS + 5):
        journal.decided(request(f"r{i}"), Decision(outcome="admitted"), float(i))
    first, kept = journal.since(0)
    assert (first, len(kept), kept[0].request) == (6, KEPT_DECISIONS, "r5")
    assert not any(isinstance(value, bytes | Request) for fact in kept for value in msgspec.structs.astuple(fact))


def test_a_tenant_is_judged_by_its_last_five_minutes() -> None:
    """Counts, shares and quantiles of the window; what is older leaves all of them."""
    journal = TenantJournal()
    journal.decided("acme", "admitted", "", 0.0)
    journal.settled("acme", 1.0, ttft_s=0.2, tpot_s=0.02, ttft_kept=True, tpot_kept=False)
    journal.decided("acme", "deferred", "kv_exhausted", 100.0)
    journal.decided("acme", "refused", "overloaded", 100.0)
    journal.settled("acme", 101.0, ttft_s=0.8, tpot_s=None, ttft_kept=False, tpot_kept=None)
    (facts,) = journal.facts(["acme"], 102.0)
    assert (facts.admitted, facts.deferred, facts.refused) == (1, 1, {"overloaded": 1})
    assert facts.ttft[:2] == (2, 1)
    assert facts.tpot[:2] == (1, 0)
    assert facts.ttft[2] == pytest.approx(0.2, rel=0.03)
    assert facts.ttft[3] == pytest.approx(0.8, rel=0.03)
    (later,) = journal.facts(["acme"], 310.0)
    assert (later.admitted, later.refused, later.ttft[:2], later.tpot) == (
        0,
        {"overloaded": 1},
        (1, 0),
        (0, 0, None, None),
    )
    assert journal.tenants(500.0, 10) == []


def test_the_history_is_the_worse_promise_of_each_period() -> None:
    """60 periods of 5 s, the oldest first; None where nothing was judged."""
    journal = TenantJournal()
    journal.settled("a", 2.0, ttft_s=0.1, tpot_s=0.1, ttft_kept=True, tpot_kept=False)
    journal.settled("a", 3.0, ttft_s=0.1, tpot_s=0.1, ttft_kept=True, tpot_kept=True)
    journal.settled("a", 11.0, ttft_s=0.1, tpot_s=None, ttft_kept=True, tpot_kept=None)
    (facts,) = journal.facts(["a"], 12.0)
    assert len(facts.history) == PERIODS
    assert facts.history[-3:] == [0.5, None, 1.0]
    assert set(facts.history[:-3]) == {None}


def test_of_many_tenants_the_busiest_are_told() -> None:
    """By name; those without a word in five minutes are forgotten."""
    journal = TenantJournal()
    for name, decided in {"c": 3, "a": 5, "b": 1}.items():
        for _ in range(decided):
            journal.decided(name, "refused", "overloaded", 10.0)
    assert journal.tenants(10.0, 2) == ["a", "c"]
    assert journal.tenants(10.0, 9) == ["a", "b", "c"]
    assert journal.facts(["nobody"], 10.0) == []


@given(
    st.lists(
        st.tuples(
            st.floats(0, 40),
            st.sampled_from(["admitted", "refused", "settled"]),
            st.floats(1e-4, 50),
            st.sampled_from([True, False, None]),
        ),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_sums_that_are_kept_are_the_sums_of_what_is_in_the_window(
    told: list[tuple[float, str, float, bool | None]],
) -> None:
    """However periods come and go, the journal says what counting anew would say."""
    journal, now, events = TenantJournal(), 0.0, []
    for wait, kind, seconds, kept in told:
        now += wait
        events.append((now, kind, seconds, kept))
        if kind == "settled":
            journal.settled("t", now, ttft_s=seconds, tpot_s=None, ttft_kept=kept, tpot_kept=None)
        else:
            journal.decided("t", kind, "overloaded", now)
    oldest = int(now / PERIOD_S) - PERIODS
    inside = [event for event in events if int(event[0] / PERIOD_S) > oldest]
    facts = journal.facts(["t"], now)
    if not events:
        assert facts == []
        return
    assert facts[0].admitted == sum(kind == "admitted" for _, kind, _, _ in inside)
    assert sum(facts[0].refused.values()) == sum(kind == "refused" for _, kind, _, _ in inside)
    judged = [kept for _, kind, _, kept in inside if kind == "settled" and kept is not None]
    assert facts[0].ttft[:2] == (len(judged), sum(judged))
    times = sorted(seconds for _, kind, seconds, _ in inside if kind == "settled")
    if times:
        assert facts[0].ttft[2] == pytest.approx(times[(len(times) + 1) // 2 - 1], rel=0.03)
