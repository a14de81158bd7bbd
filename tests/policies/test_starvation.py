"""No starvation: under a flood of requests with every advantage, how long the wait of a modest one is bounded by.

Each order has its own bound, and where the order itself has none (strict classes, deadlines, slack, prefix matches) the
bound is that of its guard: without the guard the same flood does starve, which is shown too.

| order | what bounds the wait for a start |
| --- | --- |
| fcfs | nobody who came later starts before |
| priority | nobody who came `aging_s` times its class later starts before |
| vtc | each other tenant that waits starts at most once before; tenants without end are outside of its bound |
| mlfq | after `starvation_s` and an eighth, only those that are in the highest level then go before |
| contract, edf, least-slack, lpm, vtc-edf | `patience_share` starts from `patience_s` on, for each as old or older |

A prompt that has begun goes on: whatever comes, in every `patience_share`-th step once it has waited for `patience_s`.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
from harness import Harness, make_request, worker_spec

from policies.config import Batching, Order, Preemption, SchedulerConfig

TICK_S = 0.01
SLOTS = 4
GUARD_S = 0.5
SHARE = 4
TENANTS = 5
MODEST = "modest"
PATIENT = ("contract", "edf", "least-slack", "lpm", "vtc-edf")


class Flood:
    """A modest request of the lowest class without a deadline, whose prompt takes four steps, and behind it without end
    small urgent ones of the highest class, as many as keep a queue. For lpm they share a prefix that is resident."""

    def __init__(self, order: str, *, tenants: int = TENANTS, modest_prompt: int = 200, **options: Any) -> None:
        guards: dict[str, Any] = {"patience_s": GUARD_S, "aging_s": GUARD_S / 2, "starvation_s": GUARD_S}
        config = SchedulerConfig(
            order=order,  # type: ignore[arg-type]
            **guards | {"patience_share": SHARE, "batch_timeout_s": 0.02, "single_flight_tokens": 1024} | options,
        )
        self.h = Harness(worker_spec(slots=SLOTS, tokens_per_step=64, blocks=48, host_blocks=48), config)
        self.shares_prefix = order == "lpm"
        self.tenants = tenants
        self.starts: list[tuple[float, str]] = []
        self.arrivals: dict[str, float] = {}
        self._serial = 0
        for _ in range(2):  # who keeps the worker busy, and leaves a resident prefix
            self._urgent()
        for _ in range(3):
            self._tick(flooding=False)
        for _ in range(3):
            self._urgent()
        self.ahead = len(self.h.core._waiting)
        self.came_at = self.h.now
        self._submit(MODEST, [9] * modest_prompt, 6, tier=2, tenant=MODEST)

    def _submit(self, name: str, prompt: list[int], outputs: int, **request: Any) -> None:
        self.arrivals[name] = self.h.now
        self.h.submit(make_request(name, prompt, outputs, **request))

    def _urgent(self) -> None:
        i = self._serial = self._serial + 1
        prompt = [7] * 48 + [i % 900 + 1] * 16 if self.shares_prefix else [i % 900 + 1] * 64
        self._submit(f"f{i}", prompt, 1, tier=0, ttft_s=0.1, tenant=f"t{i % self.tenants}")

    def _tick(self, *, flooding: bool = True) -> None:
        h = self.h
        h.now += TICK_S
        while flooding and len(h.core._waiting) < SLOTS + 2:
            self._urgent()
        while (step := h.plan()) is not None:
            self.starts += [(h.now, new.request) for new in step.new]
        h.execute()
        if h.results:
            h.complete()

    def run(self, *, ticks: int, until_over: bool = True) -> bool:
        """Whether the modest request has started (or is over) after so many ticks of flood."""
        for _ in range(ticks):
            self._tick()
            if (MODEST, 1) in self.h.finished if until_over else self.started_at is not None:
                return True
        return False

    @property
    def started_at(self) -> float | None:
        return next((at for at, name in self.starts if name == MODEST), None)

    def before(self, *, since_s: float = 0.0, came_since_s: float = -1.0) -> int:
        """Starts before that of the modest request, from `since_s` after it came, of those who came `came_since_s`
        after it or later."""
        names = [name for at, name in self.starts]
        return sum(
            at >= self.came_at + since_s and self.arrivals[name] >= self.came_at + came_since_s
            for at, name in self.starts[: names.index(MODEST)]
        )


@pytest.mark.parametrize("preemption", get_args(Preemption))
@pytest.mark.parametrize("batching", get_args(Batching))
@pytest.mark.parametrize("order", get_args(Order))
def test_the_wait_is_bounded_under_every_policy(order: str, batching: str, preemption: str) -> None:
    """The bound of the order, whatever the batching and the preemption; and it ends while the flood goes on."""
    flood = Flood(order, batching=batching, preemption=preemption)
    assert flood.run(ticks=600), "starved"
    assert flood.started_at is not None
    if order == "fcfs":
        assert flood.before(came_since_s=TICK_S / 2) == 0
    elif order == "priority":
        assert flood.before(came_since_s=2 * GUARD_S / 2) == 0
    elif order == "vtc":
        assert flood.before() <= TENANTS
    elif order == "mlfq":
        most = SLOTS + SLOTS + 2  # that run or wait in the highest level, a step each
        assert flood.started_at - flood.came_at <= GUARD_S * 9 / 8 + most * TICK_S
    else:
        assert flood.before(since_s=GUARD_S) <= SHARE * (flood.ahead + 1)


@pytest.mark.parametrize("batching", ["splitfuse", "time-budgeted"])
@pytest.mark.parametrize("order", PATIENT)
def test_a_prompt_that_has_begun_goes_on(order: str, batching: str) -> None:
    """Prompts that rank better go before partial ones; a patient one has every `patience_share`-th step nevertheless,
    so that it does not sit on its slot and blocks for as long as the flood lasts."""
    flood = Flood(order, batching=batching, preempt_for_tier=False, modest_prompt=500)
    row = flood.h.core._rows[MODEST]
    assert flood.run(ticks=200, until_over=False)
    flood.run(ticks=int(GUARD_S / TICK_S))  # patient in any case from here on
    for _ in range(-(-500 // 64)):
        if (MODEST, 1) in flood.h.finished or row.left < 6:
            return
        before = row.position
        for _ in range(SHARE * SLOTS):  # every slot may hold one that waits longer
            flood.run(ticks=1)
        assert row.position > before, "the prompt does not go on"
    assert row.position >= 500


@pytest.mark.parametrize("order", [*PATIENT, "priority", "mlfq"])
def test_without_its_guard_the_order_does_starve(order: str) -> None:
    """It is the guard that bounds the wait: with patience, aging and promotion off, the flood is served alone."""
    never = 1e9
    flood = Flood(order, batching="chunked", patience_s=never, aging_s=never, starvation_s=never)
    assert not flood.run(ticks=400)
    assert (flood.started_at is None) or order == "mlfq"


def test_vtc_bounds_the_wait_among_the_tenants_there_are() -> None:
    """A tenant's second request waits until the others have got as much: each may start once more for every prompt of
    the largest size. Tenants that are new with every request have no such bound: each comes with nothing served."""

    def waits_for(tenants: int) -> int | None:
        flood = Flood("vtc", batching="chunked", tenants=tenants)
        flood._submit("second", [8] * 64, 1, tier=2, tenant=MODEST)
        flood.run(ticks=400)
        for _ in range(200):
            if ("second", 1) in flood.h.finished:
                names = [name for _, name in flood.starts]
                return names.index("second") - names.index(MODEST)
            flood._tick()
        return None

    few = waits_for(TENANTS)
    assert few is not None
    costs = 200 / 64 * (1 + 200 / 64)  # of the modest prompt in those of the flood, attention included
    assert few <= TENANTS * (costs + 1)
    assert waits_for(10**9) is None
