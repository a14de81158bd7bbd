"""What a person sees of a scheduler agrees with what it does."""

from __future__ import annotations

from harness import FixedStepTime, make_request, worker_spec

from policies.config import SchedulerConfig
from policies.scheduler import Scheduler
from policies.views import MOST_ROWS, MOST_SLACKS
from policies.vocabulary import StepDone


def scheduler(**sizes: int) -> Scheduler:
    return Scheduler(worker_spec(**sizes), config=SchedulerConfig(), step_time=FixedStepTime())


def finish_step(core: Scheduler, now: float, *, sampled: int) -> None:
    """The oldest step in flight comes back; its first `sampled` slots sampled a token."""
    step = core.oldest.step
    core.complete(StepDone(step.number, step.slots[:sampled], [5] * sampled, [0] * sampled, 0.01), now)


def test_rows_are_seen_from_the_queue_to_decode() -> None:
    """Waiting, then in prefill, then in decode, with tokens, slack and blocks as they are."""
    core = scheduler(slots=1)
    core.submit(make_request("a", [1] * 20, 30, tenant="acme", tier=0, ttft_s=1.0, tpot_s=0.1), 0.0)
    core.submit(make_request("b", [2] * 20, 30, tenant="free", tier=2), 0.0)
    view = core.view(0.5)
    assert (view.rows, view.owners, view.running) == ([], {}, {})
    assert view.waiting == {"acme": 1, "free": 1}
    priority, flex = view.queue
    assert (priority.tier, priority.waiting, priority.promised) == (0, 1, 1)
    assert 0.4 < priority.slacks_s[0] < 0.5  # a second, less the half that is gone and the time of its prompt
    assert (flex.waiting, flex.promised, flex.slacks_s) == (1, 0, [])
    core.plan(0.5)
    view = core.view(0.5)
    assert view.running == {"acme": 1}
    assert view.owners == {"acme": core.block_counts()["used"]}
    finish_step(core, 0.6, sampled=1)
    (row,) = core.view(0.7).rows
    assert (row.request, row.phase, row.prompt_tokens, row.computed, row.generated) == ("a", "decode", 20, 20, 1)
    assert row.slack_s is not None
    assert -0.11 < row.slack_s < 0.0  # its first token came a tenth of a second ago: the next one is about due


def test_a_chunked_prompt_is_seen_in_prefill() -> None:
    """While tokens of it are in no step yet; its slack shrinks with what is left."""
    core = scheduler(tokens_per_step=16)
    core.submit(make_request("a", [1] * 100, 10, ttft_s=5.0), 0.0)
    before = core.view(0.0).queue[0].slacks_s[0]
    core.plan(0.0)
    (row,) = core.view(0.0).rows
    assert row.phase == "prefill"
    assert row.slack_s is not None
    assert row.slack_s > before


def test_rows_are_the_tightest_and_bounded() -> None:
    """Those without a promise come last; beyond the bound only counts tell."""
    core = scheduler(blocks=512, slots=MOST_ROWS + 8, tokens_per_step=512)
    for i in range(MOST_ROWS + 8):
        core.submit(make_request(f"r{i}", [i] * 4, 4, ttft_s=None if i % 8 == 0 else 100.0 - i), 0.0)
    core.plan(0.0)
    view = core.view(0.0)
    slacks = [row.slack_s for row in view.rows if row.slack_s is not None]
    assert len(view.rows) == MOST_ROWS
    assert slacks == sorted(slacks)
    assert len(slacks) == MOST_ROWS - 1
    assert sum(view.running.values()) == MOST_ROWS + 8


def test_slacks_of_a_long_queue_are_sampled_with_both_ends() -> None:
    """So that the least and the median can still be told."""
    core = scheduler(slots=1)
    for i in range(200):
        core.submit(make_request(f"r{i}", [i] * 4, 4, ttft_s=10.0 + i), 0.0)
    (tier,) = core.view(0.0).queue
    assert (tier.waiting, tier.promised, len(tier.slacks_s)) == (200, 200, MOST_SLACKS)
    assert tier.slacks_s == sorted(tier.slacks_s)
    assert tier.slacks_s[-1] - tier.slacks_s[0] > 198.9
