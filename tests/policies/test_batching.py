"""Batching: who may start in a step, and how much of a prompt it takes."""

from __future__ import annotations

from math import inf

import pytest
from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import SchedulerConfig
from policies.events import Finished
from policies.scheduler import Scheduler
from policies.vocabulary import Finish, Step, StepDone

# Arrival and decode steps of each request; every prompt has two tokens, and a step with both of one lasts two units.
TEXTBOOK = {"A": (0, 4), "B": (1, 6), "C": (1, 3), "D": (4, 4), "E": (5, 3)}


def config_of(batching: str, **options: object) -> SchedulerConfig:
    return SchedulerConfig(batching=batching, order="fcfs", **options)  # type: ignore[arg-type]


def textbook(config: SchedulerConfig, *, until: int = 40) -> tuple[dict[str, int], dict[str, int]]:
    """The first column of each request and its last, when the core drives a device of whole time units."""
    core = Scheduler(worker_spec(slots=4), config=config, step_time=FixedStepTime())
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    left = dict.fromkeys(TEXTBOOK, 0)
    at: dict[int, str] = {}
    behind: dict[str, int] = {}
    step: Step | None = None
    began = done_at = 0
    for now in range(until):
        for name, (arrival, decode) in TEXTBOOK.items():
            if arrival == now:
                core.submit(make_request(name, [1, 2], decode + 1), float(now))
        if step is not None and now >= done_at:
            finished = []
            sampled = [slot for slot in step.slots if behind[at[slot]] == 0]
            for slot in sampled:
                left[at[slot]] -= 1
                finished.append(int(Finish.length) if left[at[slot]] == 0 else 0)
            done = StepDone(step.number, sampled, [7] * len(sampled), finished, float(done_at - began))
            events = core.complete(done, float(now))
            ends |= {event.request: began for event in events if isinstance(event, Finished)}
            core.check_integrity()
            step = None
        if step is None and (step := core.plan(float(now))) is not None:
            for new in step.new:
                at[new.slot], behind[new.request], left[new.request] = new.request, 2, new.max_tokens
                starts[new.request] = now
            prompts = [count for slot, count in zip(step.slots, step.counts, strict=True) if behind[at[slot]]]
            for slot, count in zip(step.slots, step.counts, strict=True):
                behind[at[slot]] = max(0, behind[at[slot]] - count)
            began, done_at = now, now + (2 if max(prompts, default=0) == 2 else 1)
    return starts, ends


@pytest.mark.parametrize(
    ("config", "starts", "ends"),
    [
        (config_of("static", steps_in_flight=1), (4, 4, 4, 4, None), (9, 11, 8, 9, None)),
        (config_of("dynamic", batch_timeout_s=2.0, steps_in_flight=1), (2, 2, 2, 10, 10), (7, 9, 6, 15, 14)),
        (config_of("continuous", steps_in_flight=1), (0, 2, 2, 4, 8), (7, 11, 7, 10, 12)),
        (config_of("chunked", max_chunk=1, steps_in_flight=1), (0, 1, 1, 4, 6), (5, 8, 5, 9, 10)),
    ],
    ids=["static", "dynamic", "continuous", "chunked"],
)
def test_the_textbook_schedules_come_out_exactly(
    config: SchedulerConfig, starts: tuple[int | None, ...], ends: tuple[int | None, ...]
) -> None:
    """The small worked example of the batching literature, to the column."""
    expected = tuple({k: v for k, v in zip("ABCDE", row, strict=True) if v is not None} for row in (starts, ends))
    assert textbook(config) == expected


def counts(step: Step | None) -> list[int]:
    assert step is not None
    return sorted(step.counts)


@pytest.mark.parametrize("batching", ["static", "dynamic"])
def test_a_batch_is_not_joined_while_it_runs(batching: str) -> None:
    """Nobody starts before the last member is over, however many wait, and then a whole batch does."""
    h = Harness(worker_spec(slots=4), config_of(batching, batch_size=2, steps_in_flight=1))
    for name, outputs in (("a", 2), ("b", 6), ("c", 2), ("d", 2)):
        h.submit(make_request(name, [1] * 4, outputs))
    started: list[list[str]] = []
    for _ in range(12):
        step = h.core.plan(h.now)
        if step is None:
            break
        started.append([new.request for new in step.new])
        h.steps.append(step)
        h.planned = step.number
        h.execute()
        h.complete()
    assert [names for names in started if names] == [["a", "b"], ["c", "d"]]


def test_a_partial_batch_starts_when_its_oldest_has_waited() -> None:
    """`wake_at` tells the instant, and at that very instant the batch starts."""
    core = Scheduler(
        worker_spec(), config=config_of("dynamic", batch_size=4, batch_timeout_s=0.3), step_time=FixedStepTime()
    )
    core.submit(make_request("a", [1] * 4, 2), 0.1)
    core.submit(make_request("b", [1] * 4, 2), 0.2)
    assert core.plan(0.2) is None
    at = core.wake_at(0.2)
    assert at == pytest.approx(0.4)
    assert core.plan(at - 1e-6) is None
    step = core.plan(at)
    assert step is not None
    assert len(step.new) == 2
    assert core.wake_at(at) == inf


def test_a_time_that_has_come_is_not_waited_for() -> None:
    """A batch whose timeout has passed and that lacks blocks, held for what is on its way, waits for these alone:
    whoever sleeps until `wake_at` would otherwise wake again and again."""
    core = Scheduler(worker_spec(blocks=4), config=config_of("dynamic", batch_timeout_s=0.5), step_time=FixedStepTime())
    assert core.expect(make_request("coming", [1] * 40, 5), 0.0, tokens=40)
    core.submit(make_request("a", [1] * 40, 5), 1.0)
    assert core.plan(1.0) is None
    assert core.wake_at(1.0) == core.wake_at(1.2) == 1.5
    assert core.plan(1.5) is None
    assert core.wake_at(1.5) == core.wake_at(2.0) == inf
    core.abandon("coming")
    assert core.plan(2.0) is not None


def test_prompts_of_a_batch_that_exceed_a_step_follow_in_the_next() -> None:
    """A static batch stays open for its own members alone until all of them have begun."""
    h = Harness(worker_spec(tokens_per_step=64), config_of("static", batch_size=3, steps_in_flight=1))
    for name in "abc":
        h.submit(make_request(name, [ord(name)] * 40, 3))
    started = []
    for turn in range(3):
        step = h.plan()
        assert step is not None
        started += [new.request for new in step.new]
        if not turn:
            h.submit(make_request("late", [1] * 4, 3))
        h.execute()
        h.complete()
    assert started == ["a", "b", "c"]


def test_continuous_never_splits_a_prompt_that_the_worker_could_take() -> None:
    """What does not fit beside another prompt waits for the next step; what exceeds the worker is cut."""
    h = Harness(worker_spec(tokens_per_step=64), config_of("continuous", steps_in_flight=1))
    for name, size in (("a", 40), ("b", 40), ("c", 100)):
        h.submit(make_request(name, [ord(name)] * size, 9))
    seen = []
    for _ in range(4):
        seen.append(counts(h.plan()))
        h.execute()
        h.complete()
    assert seen == [[40], [1, 40], [1, 1, 62], [1, 1, 38]]


def test_chunked_finishes_partial_prompts_before_it_starts_others() -> None:
    """Decodes, then the partial prompt, then new ones, in the budget; one partial prompt, at the tail."""
    h = Harness(worker_spec(), config_of("chunked", chunk_tokens=32, steps_in_flight=1))
    for name, size in (("a", 40), ("b", 40), ("c", 10)):
        h.submit(make_request(name, [ord(name)] * size, 9))
    seen = []
    for _ in range(3):
        seen.append(counts(h.plan()))
        assert sum(row.behind > 1 for row in h.core._running.prefilling) <= 1
        h.execute()
        h.complete()
    assert seen == [[32], [8, 24], [1, 10, 16]]


def test_splitfuse_fills_every_step_exactly() -> None:
    """As long as there is work, a step has exactly its tokens, in pieces of as many prompts as it takes."""
    h = Harness(worker_spec(slots=8), config_of("splitfuse", chunk_tokens=32, max_chunk=20, steps_in_flight=1))
    for i, size in enumerate((50, 7, 33, 18, 25, 60)):
        h.submit(make_request(str(i), [i] * size, 20))
    for _ in range(5):
        step = h.plan()
        assert step is not None
        assert sum(step.counts) == 32
        assert max(step.counts) <= 20
        h.execute()
        h.complete()
    h.run()
    h.check_end()


@pytest.mark.parametrize("batching", ["continuous", "chunked", "splitfuse", "time-budgeted"])
def test_batch_size_bounds_the_rows_and_max_chunk_their_pieces(batching: str) -> None:
    """Whatever the batching, and everybody is served all the same."""
    h = Harness(worker_spec(), config_of(batching, batch_size=3, max_chunk=5))
    for i in range(9):
        h.submit(make_request(str(i), [i] * (4 + 3 * i), 4))
    h.run()
    h.check_end()
    h = Harness(worker_spec(), config_of(batching, batch_size=3, max_chunk=5, steps_in_flight=1))
    for i in range(9):
        h.submit(make_request(str(i), [i] * (4 + 3 * i), 4))
    while (step := h.plan()) is not None:
        assert len(step.slots) <= 3
        assert max(step.counts) <= 5
        h.execute()
        h.complete()


def test_decodes_always_fit_the_tokens_of_a_step() -> None:
    """With fewer tokens than slots, no more rows run than every step has tokens for."""
    h = Harness(worker_spec(slots=8), config_of("chunked", chunk_tokens=4, steps_in_flight=1))
    for i in range(8):
        h.submit(make_request(str(i), [i] * 3, 6))
    while (step := h.plan()) is not None:
        assert sum(step.counts) <= 4
        h.execute()
        h.complete()
    h.check_end()


@pytest.mark.parametrize("outputs", [2, 50])
def test_a_chunk_beside_a_paced_row_keeps_its_pace_also_at_its_last_token(outputs: int) -> None:
    """A prompt of 400 fits whole into a step, but beside a row that was promised 20 ms only what fits into that: 98 %
    of 20 ms are 8 + 11.6, or 112 tokens in whole blocks beside one decode."""
    h = Harness(worker_spec(tokens_per_step=512), SchedulerConfig(steps_in_flight=1))
    h.submit(make_request("paced", [1], outputs, tpot_s=0.02))
    h.plan()
    h.execute()
    h.complete()
    h.submit(make_request("long", [2] * 400, 4))
    assert counts(h.plan()) == [1, 112]
