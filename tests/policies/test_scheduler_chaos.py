"""Whatever happens in whatever order, every request gets exactly its own outputs, and every block comes back."""

from __future__ import annotations

import random

import pytest
from harness import Harness, make_request, worker_spec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policies.config import SchedulerConfig
from policies.events import Finished, Preempted, Reclaimed
from policies.vocabulary import BLOCK_SIZE, Request

PREFIXES = [[3] * 80, [3] * 32 + [4] * 48]


def draw_request(rnd: random.Random, name: str, *, blocks: int, vocabulary: int) -> Request:
    """Any request that the pool could hold, often with a prefix that others have too."""
    outputs = rnd.choice([rnd.randint(1, 40), rnd.randint(40, 90)])
    prompt = [t % vocabulary for t in rnd.choice(PREFIXES)][: rnd.choice([0, 0, 16, 40, 64])]
    prompt += [rnd.randrange(vocabulary) for _ in range(rnd.randint(1, 30))]
    return make_request(
        name,
        prompt[: blocks * BLOCK_SIZE - outputs],
        outputs,
        tenant=rnd.choice("xyz"),
        tier=rnd.randint(0, 2),
        ttft_s=rnd.choice([None, 0.05, 1.0]),
        tpot_s=rnd.choice([None, 0.02]),
        salt=rnd.choice([b"one", b"other"]),
    )


def draw_config(rnd: random.Random) -> SchedulerConfig:
    return SchedulerConfig(
        steps_in_flight=rnd.choice([1, 2, 2, 3]),
        preemption=rnd.choice(["hybrid", "hybrid", "swap", "recompute", "tail", "tail", "none"]),
        max_preemptions=rnd.choice([0, 1, 2, 5]),
        min_run_steps=rnd.choice([0, 3]),
        offload_share=rnd.choice([0.0, 0.0, 0.2, 1.0]),
        prefix_cache=rnd.choice([True, True, True, False]),
        single_flight_tokens=rnd.choice([16, 32]),
        new_tokens_per_step=rnd.choice([50, 65_536]),
        patience_s=rnd.choice([0.5, 30.0]),
        patience_share=rnd.choice([1, 3, 8]),
        force_preempt_every=rnd.choice([0, 0, 0, 7]),
    )


def draw_harness(rnd: random.Random) -> Harness:
    spec = worker_spec(
        blocks=rnd.choice([6, 8, 12, 18, 40]),
        host_blocks=rnd.choice([0, 8, 40, 40]),
        slots=rnd.choice([1, 4, 8]),
        tokens_per_step=rnd.choice([8, 24, 64, 256]),
    )
    return Harness(spec, draw_config(rnd), vocabulary=rnd.choice([7, 100, 1000, 1000]))


@pytest.mark.parametrize("seed", range(80))
def test_requests_get_their_own_outputs_under_any_load(seed: int) -> None:
    """Outputs equal those of a run alone, whatever shares the pool, is preempted, cancelled or late."""
    rnd = random.Random(seed)
    harness = draw_harness(rnd)
    submitted = 0
    while submitted < 25 or harness.core.requests() or harness.core.in_flight:
        harness.now += 0.01
        assert harness.now < 60, "some requests never end"
        if submitted < 25 and rnd.random() < 0.3:
            submitted += 1
            harness.submit(
                draw_request(rnd, f"r{submitted}", blocks=harness.spec.blocks, vocabulary=harness.vocabulary)
            )
        if rnd.random() < 0.02 and harness.requests:
            harness.cancel(rnd.choice(list(harness.requests)))
        if rnd.random() < 0.6:
            harness.plan()
        if rnd.random() < 0.6:
            harness.execute()
        if harness.results and rnd.random() < 0.6:
            harness.complete()
    harness.check_end()


def test_the_chaos_reaches_what_it_is_for() -> None:
    """Among the chaotic runs there are all kinds of preemption, prefix hits and stops, or they would prove little."""
    seen = {"swap": 0, "recompute": 0, "tail": 0, "reclaimed": 0, "hit": 0}
    for seed in range(60):
        rnd = random.Random(seed)
        harness = draw_harness(rnd)
        for i in range(20):
            harness.submit(draw_request(rnd, f"r{i}", blocks=harness.spec.blocks, vocabulary=harness.vocabulary))
        harness.run()
        harness.check_end()
        for event in harness.events:
            if isinstance(event, Preempted):
                seen[event.kind] += 1
            elif isinstance(event, Reclaimed):
                seen["reclaimed"] += 1
            elif isinstance(event, Finished):
                seen["hit"] += event.cached_tokens > 0
    assert min(seen.values()) >= 20, seen


class Chaos(RuleBasedStateMachine):
    """Clients, gateways, the network and the worker, in any order of events."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.rnd = random.Random(seed)
        self.harness = draw_harness(self.rnd)

    @rule(seed=st.integers(0, 2**32))
    def submit(self, seed: int) -> None:
        h = self.harness
        name = f"r{len(h.requests)}"
        h.submit(draw_request(random.Random(seed), name, blocks=h.spec.blocks, vocabulary=h.vocabulary))

    @precondition(lambda self: self.harness.requests)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        names = list(self.harness.requests)
        self.harness.cancel(names[which % len(names)])

    @precondition(lambda self: self.harness.requests)
    @rule(which=st.integers(0, 100))
    def submit_again(self, which: int) -> None:
        h = self.harness
        name = list(h.requests)[which % len(h.requests)]
        if h.over(name):
            return
        if which % 2:
            h.submit(h.requests[name])  # a repeated message: ignored
        else:
            h.resume(name)

    @rule(elapsed_s=st.sampled_from([0.001, 0.05, 2.0]))
    def wait(self, elapsed_s: float) -> None:
        self.harness.now += elapsed_s

    @rule()
    def plan(self) -> None:
        self.harness.plan()

    @rule()
    def pump(self) -> None:
        while self.harness.plan() is not None:
            pass
        self.harness.execute()

    @precondition(lambda self: self.harness.results)
    @rule(which=st.integers(0, 2), again=st.booleans())
    def complete(self, which: int, again: bool) -> None:
        h = self.harness
        which %= len(h.results)
        done = h.results[which]
        h.complete(which)
        if again:
            h.results.insert(0, done)  # and comes once more, later

    @precondition(lambda self: len(self.harness.requests) > 3)
    @rule(sure=st.integers(0, 9))
    def lose_worker(self, sure: int) -> None:
        if sure == 0:
            self.harness.lose_worker()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "harness"):
            self.harness.core.check_integrity()

    def teardown(self) -> None:
        if hasattr(self, "harness"):
            self.harness.run()
            self.harness.check_end()


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
