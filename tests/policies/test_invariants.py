"""Every invariant of the scheduler, on every combination of its policies.

What holds, and where it is looked at: blocks are conserved and nothing is freed twice (`check_integrity` after every
call, every block back at the end); a block is not written while a step in flight touches it for another (`Fences`), nor
read with anything but its row's own KV (`ToyWorker`); tokens and rows of a step within what batching and worker take;
everybody gets exactly the outputs of a run alone, once; a victim has no tokens in the step that evicts it and nobody
starts in it; K preemptions are the most; with work that could run there is a step, and if only time makes some, it is
told when (`Audited`, `Harness.idle_reason`). Bounds of the wait are in `test_starvation.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import get_args

import pytest
from audited import Audited, Pair, draw_config, draw_request, draw_spec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policies.config import Batching, Order, Preemption, SchedulerConfig
from policies.events import Finished, Preempted, Reclaimed
from policies.overload import Level
from policies.vocabulary import Finish

WORKERS = st.integers(0, 1)
TRIPLES = st.tuples(
    st.sampled_from(get_args(Order)), st.sampled_from(get_args(Batching)), st.sampled_from(get_args(Preemption))
)


def chaos(rnd: random.Random, config: SchedulerConfig, *, requests: int) -> Audited:
    """A worker under a random load, with cancels, crashes, and results that are late or come twice."""
    h = Audited(draw_spec(rnd), config, vocabulary=rnd.choice([7, 1000]))
    submitted = 0
    while submitted < requests:
        h.now += 0.01
        if rnd.random() < 0.4:
            submitted += 1
            h.submit(draw_request(rnd, f"r{submitted}", blocks=h.spec.blocks, vocabulary=h.vocabulary))
        if rnd.random() < 0.03 and h.requests:
            h.cancel(rnd.choice(list(h.requests)))
        if rnd.random() < 0.01:
            h.lose_worker()
        if rnd.random() < 0.7:
            h.plan()
        if rnd.random() < 0.7:
            h.execute()
        if h.results and rnd.random() < 0.7:
            which = rnd.randrange(len(h.results))
            done = h.results[which]
            h.complete(which)
            if rnd.random() < 0.1:
                h.results.append(done)
    h.settle()
    h.check_end()
    return h


@pytest.mark.parametrize("preemption", get_args(Preemption))
@pytest.mark.parametrize("batching", get_args(Batching))
@pytest.mark.parametrize("order", get_args(Order))
def test_every_triple_of_policies_keeps_every_invariant(order: str, batching: str, preemption: str) -> None:
    """With all else drawn at random, fixed for each triple."""
    for seed in range(2):
        rnd = random.Random(f"{order} {batching} {preemption} {seed}")
        chaos(rnd, draw_config(rnd, order, batching, preemption), requests=8)


class Chaos(RuleBasedStateMachine):
    """Clients, gateways, two workers and what moves between them, in any order of events, under any configurations."""

    @initialize(seed=st.integers(0, 2**32), triples=st.tuples(TRIPLES, TRIPLES))
    def start(self, seed: int, triples: tuple[tuple[str, str, str], tuple[str, str, str]]) -> None:
        rnd = random.Random(seed)
        self.pair = Pair(rnd, [draw_config(rnd, *triple) for triple in triples])

    @property
    def ready(self) -> bool:
        return hasattr(self, "pair")

    @rule(worker=WORKERS, seed=st.integers(0, 2**32))
    def submit(self, worker: int, seed: int) -> None:
        self.pair.submit(random.Random(seed), self.pair.workers[worker])

    @rule(worker=WORKERS, seed=st.integers(0, 2**32), count=st.integers(3, 9))
    def flood(self, worker: int, seed: int, count: int) -> None:
        rnd = random.Random(seed)
        for _ in range(count):
            self.pair.submit(rnd, self.pair.workers[worker])

    @rule(worker=WORKERS, which=st.integers(0, 100))
    def cancel(self, worker: int, which: int) -> None:
        self.pair.cancel(self.pair.workers[worker], which)

    @rule(worker=WORKERS, which=st.integers(0, 100))
    def submit_again(self, worker: int, which: int) -> None:
        self.pair.submit_again(self.pair.workers[worker], which)

    @rule(worker=WORKERS, level=st.sampled_from(Level))
    def relieve(self, worker: int, level: Level) -> None:
        self.pair.workers[worker].core.relieve(level)

    @rule(elapsed_s=st.sampled_from([0.001, 0.05, 2.0]))
    def wait(self, elapsed_s: float) -> None:
        for worker in self.pair.workers:
            worker.now += elapsed_s

    @rule(worker=WORKERS)
    def plan(self, worker: int) -> None:
        self.pair.workers[worker].plan()

    @rule(worker=WORKERS)
    def pump(self, worker: int) -> None:
        h = self.pair.workers[worker]
        while h.plan() is not None:
            pass
        h.execute()

    @rule(worker=WORKERS, steps=st.integers(1, 12))
    def run_on(self, worker: int, steps: int) -> None:
        """The usual course of things, so that later rules meet rows in all states."""
        h = self.pair.workers[worker]
        for _ in range(steps):
            h.now += 0.01
            while h.plan() is not None:
                pass
            h.execute()
            if h.results:
                h.complete()

    @rule(worker=WORKERS, which=st.integers(0, 2), again=st.booleans())
    def complete(self, worker: int, which: int, again: bool) -> None:
        h = self.pair.workers[worker]
        if h.results:
            which %= len(h.results)
            done = h.results[which]
            h.complete(which)
            if again:
                h.results.insert(0, done)  # and comes once more, later

    @rule(worker=WORKERS, which=st.integers(0, 100))
    def begin_move(self, worker: int, which: int) -> None:
        self.pair.begin(self.pair.workers[worker], which)

    @rule(which=st.integers(0, 100))
    def stop_for_move(self, which: int) -> None:
        self.pair.stop(which)

    @rule(which=st.integers(0, 100), lost=st.integers(0, 9))
    def arrive(self, which: int, lost: int) -> None:
        self.pair.arrive(which, lost=not lost)

    @precondition(lambda self: self.ready and self.pair.submitted > 3)
    @rule(worker=WORKERS, sure=st.integers(0, 9))
    def crash(self, worker: int, sure: int) -> None:
        if not sure:
            self.pair.crash(self.pair.workers[worker])

    @invariant()
    def books_agree(self) -> None:
        if self.ready:
            for worker in self.pair.workers:
                worker.core.check_integrity()
                for told in worker.core.load(worker.now, "w").requests:
                    assert told.prefill_left >= 1, "who lives has a token to compute"

    def teardown(self) -> None:
        if self.ready:
            self.pair.end()


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_the_chaos_reaches_what_it_is_for() -> None:
    """There are storms of every kind of preemption, shed deadlines, hits, deliveries, and crashes in between, or the
    runs above would prove little."""
    seen: Counter[str] = Counter()
    for seed in range(25):
        rnd = random.Random(seed)
        pair = Pair(rnd, [draw_config(rnd) for _ in range(2)])
        for step in range(150):
            for worker in pair.workers:
                worker.now += 0.01
                if step < 40 and rnd.random() < 0.4:
                    pair.submit(rnd, worker)
                worker.plan()
                worker.execute()
                if worker.results:
                    worker.complete()
                if rnd.random() < 0.01:
                    pair.crash(worker)
                pair.begin(worker, rnd.randrange(100))
                pair.stop(0)
                pair.arrive(0)
        pair.end()
        seen["delivered"] += pair.delivered
        seen["crashes"] += pair.crashes
        for worker in pair.workers:
            for event in worker.events:
                if isinstance(event, Preempted):
                    seen[event.kind] += 1
                elif isinstance(event, Reclaimed):
                    seen["reclaimed"] += 1
                elif isinstance(event, Finished):
                    seen["hit"] += event.cached_tokens > 0
                    seen["shed"] += event.finish is Finish.error
    kinds = ("swap", "recompute", "tail", "reclaimed", "hit", "shed", "delivered", "crashes")
    assert min(seen[kind] for kind in kinds) >= 10, seen
