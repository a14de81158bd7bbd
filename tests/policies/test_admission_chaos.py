"""Admission under any sequence of what it hears: every request gets one final answer, and every reservation comes back.

Reports say anything (rows that nobody admitted, some of those that it did, no worker at all), in any order with
arrivals, ends, cancels and silence, for every kind of admission.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from math import ceil, inf
from typing import get_args

import pytest
from door import request
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from worker_sim import COEFFICIENTS

from policies.admission import Admission, Admit, Decided, Defer, MaxTokens, Policy, Refuse, Verdict
from policies.admission.verdict import AdmissionKind
from policies.overload import Rungs
from policies.vocabulary import RequestLoad, WorkerLoad

KINDS = get_args(AdmissionKind)
MODELS = ("m", "n")
WORKERS = ("u", "v", "w")
TENANTS = ("x", "y", "z")


def draw_policy(rnd: random.Random, kind: str) -> Policy:
    return Policy(
        kind=kind,  # type: ignore[arg-type]
        lookahead_s=rnd.choice([0.0, 0.2]),
        kv_reserve=rnd.choice([0.0, 0.05, 0.5]),
        flex_yields=rnd.choice([False, True]),
        relegate=rnd.choice([False, True]),
        fair_room=rnd.choice([0.0, 0.2]),
        ladder=rnd.choice([None, Rungs(), Rungs(dwell_s=0.1)]),
        queue_size=rnd.choice([1, 3, 8, 512]),
        queue_share=rnd.choice([0.2, 0.5, 1.0]),
        looked_at=rnd.choice([1, 64]),
        shortlist=rnd.choice([1, 8]),
        queued_tokens=rnd.choice([500, 16_384]),
        uniform_outputs=rnd.choice([0, 100]),
    )


class World:
    """An admission, what it was asked and told, and what it answered."""

    def __init__(self, rnd: random.Random, kind: str) -> None:
        self.rnd = rnd
        self.policy = draw_policy(rnd, kind)
        lengths = rnd.choice([None, MaxTokens()])
        self.stale_s = rnd.choice([2.0, inf])
        self.door = Admission(self.policy, lengths=lengths, load_stale_s=self.stale_s)
        self.now = 0.0
        self.serial = 0
        self.arrived: dict[str, tuple[str, str, float, float]] = {}  # model, tenant, instant, latest answer
        self.deferred: dict[str, str] = {}  # id: model
        self.admitted: dict[str, str] = {}  # id: tenant; those that are not over
        self.answers: Counter[str] = Counter()
        self.workers: dict[str, set[str]] = {}
        self.seen: Counter[str] = Counter()
        self.left: set[str] = set()  # while they waited

    # What happens

    def arrive(self) -> None:
        rnd = self.rnd
        self.serial += 1
        name, model, tenant = f"r{self.serial}", rnd.choice(MODELS), rnd.choice(TENANTS)
        ttft_s = rnd.choice([None, 0.3, 1.0, 5.0])
        wanted = request(
            name,
            tenant=tenant,
            prompt=rnd.choice([1, 50, 1000, 7000]),
            max_tokens=rnd.choice([1, 100, 1500]),
            tier=rnd.choice([0, 1, 2]),
            ttft_s=ttft_s,
            tpot_s=rnd.choice([None, 0.005, 0.02, 0.1]),
            weight=rnd.choice([1.0, 2.0]),
            model=model,
        )
        patience_s = rnd.choice([0.5, 5.0])
        waited_s = rnd.choice([0.0, 0.0, 0.2])
        self.arrived[name] = (model, tenant, self.now - waited_s, max(ttft_s or 0.0, patience_s))
        before = (len(self.door), self.door.wake_at())
        if rnd.random() < 0.2:
            self.door.explain(wanted, self.now)
            assert (len(self.door), self.door.wake_at()) == before, "a dry run left something behind"
        verdict = self.door.arrive(
            wanted,
            self.now,
            arrived_s=self.now - waited_s,
            committed=rnd.random() < 0.8,
            patience_s=patience_s,
            cached={rnd.choice(WORKERS): rnd.choice([0, 16, 5000])},
        )
        self._note(name, verdict)

    def report(self, *, whole: bool = True, empty: bool = False) -> None:
        rnd, model = self.rnd, self.rnd.choice(MODELS)
        names = [] if empty else [name for name in WORKERS if rnd.random() < 0.8]
        loads = [self._load(model, name) for name in names]
        self.door.report(model, loads, self.now, whole=whole)
        shown = {row.id for load in loads for row in load.requests}
        assert not shown & self.door._reservations._where.keys(), "counted in the report, and beside it"
        known = self.workers.setdefault(model, set())
        self.workers[model] = set(names) if whole else known | set(names)
        if rnd.random() < 0.8:
            self._decide(self.door.reexamine(model, self.now))

    def expire(self) -> None:
        decided = self.door.expire(self.now)
        self._decide(decided)
        late = [name for name in self.deferred if self._latest(name) < self.now - 1e-9]
        assert not late, f"{late} wait for an answer after their time"
        assert self.door.wake_at() > self.now, "woken again for what was told"

    def wake(self) -> None:
        """Sleep until it says so."""
        at = self.door.wake_at()
        if at == inf:
            return
        assert len(self.deferred) >= len(self.door)
        self.now = max(self.now, at)
        decided = self.door.expire(self.now)
        assert decided, "woken for nothing"
        self._decide(decided)

    def cancel(self) -> None:
        live = [*self.deferred, *self.admitted]
        if live:
            name = self.rnd.choice(live)
            turned_away = self.deferred.get(name) is not None and name not in self.door
            tenant = self.door.cancel(name, self.now)
            assert tenant == self.admitted.pop(name, None)
            if not turned_away and self.deferred.pop(name, None) is not None:  # else its refusal is on its way
                self.left.add(name)

    def settle(self) -> None:
        if self.admitted:
            name = self.rnd.choice(list(self.admitted))
            tenant = self.admitted.pop(name)
            kept = self.rnd.choice([None, True, False])
            self.door.settled(name, tenant, outputs=7, is_whole=self.rnd.random() < 0.8, ttft_kept=kept, now=self.now)

    def confirm(self, share: float) -> None:
        """Gateways say what they have under way; what nobody spoke of for long is given back."""
        entries = [(name, tenant, 10) for name, tenant in self.admitted.items() if self.rnd.random() < share]
        assert self.door.live(entries, self.now) == []
        for name, tenant in self.door.abandoned(self.now):
            assert self.admitted.pop(name) == tenant, "given back twice"

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def end(self) -> None:
        """No more arrivals: everybody is answered by their time, and then nothing is left of anybody."""
        for _ in range(len(self.deferred) + 1):
            if self.door.wake_at() == inf:
                break
            self.wake()
        assert not self.deferred
        assert (len(self.door), self.door.wake_at()) == (0, inf)
        while self.admitted:
            self.rnd.choice([self.cancel, self.settle])()
        self._check_given_back()
        assert {name for name in self.arrived if not self.answers[name]} == self.left

    # What must hold

    def check(self) -> None:
        policy, door = self.policy, self.door
        waiting = [name for name in self.deferred if name in door]
        assert len(door) == len(waiting)
        places = Counter(self.deferred[name] for name in waiting)
        assert max(places.values(), default=0) <= policy.queue_size
        held = Counter((self.deferred[name], self.arrived[name][1]) for name in waiting)
        assert max(held.values(), default=0) <= ceil(policy.queue_size * policy.queue_share)
        reservations = door._reservations
        assert reservations.tenants == self.admitted
        pending = [
            reservation.id
            for model, worker in list(reservations._pending)
            for reservation in reservations.pending(model, worker)
        ]
        assert len(pending) == len(set(pending)), "reserved twice"
        assert set(pending) <= self.admitted.keys(), "reserved for nobody"
        for model, state in door._models.items():
            for name, worker in state.fleet._workers.items():
                mine = reservations.pending(model, name)
                assert worker._pending[1].waiting == len(mine)
                assert worker._pending[1].tokens == sum(reservation.prompt_tokens for reservation in mine)

    def _check_given_back(self) -> None:
        self.check()
        reservations = self.door._reservations
        assert not reservations._pending
        assert not reservations._where
        assert not reservations._since
        assert not reservations._confirmed
        for state in self.door._models.values():
            assert not state.deferred._held
            assert all(not worker._pending[kind].tokens for worker in state.fleet._workers.values() for kind in (0, 1))

    def _note(self, name: str, verdict: Verdict) -> None:
        self.seen[type(verdict).__name__] += 1
        model, tenant, _, _ = self.arrived[name]
        if isinstance(verdict, Defer):
            assert not self.answers[name]
            assert self.now - 1e-9 <= verdict.until_s <= verdict.deadline_s + 1e-9
            assert verdict.deadline_s <= self._latest(name) + 1e-9
            self.deferred[name] = model
            return
        self.answers[name] += 1
        assert self.answers[name] == 1, f"{name} is answered twice"
        self.deferred.pop(name, None)
        if isinstance(verdict, Admit):
            self.admitted[name] = tenant
            assert verdict.worker in self.workers[model] or (self.policy.kind == "none" and not verdict.worker)
            assert verdict.ttft_s is None or self.policy.kind != "contract" or verdict.ttft_s > 0
            assert not verdict.relegated or (verdict.ttft_s, verdict.tpot_s, verdict.tier) == (None, None, 2)
        else:
            again = verdict.retry_after_s
            assert again is None or self.policy.retry_floor_s <= again < inf
            self.seen[str(verdict.reason)] += 1

    def _decide(self, decided: list[Decided]) -> None:
        for one in decided:
            assert one.request.id in self.deferred, "nobody waits for this answer"
            assert isinstance(one.verdict, Admit | Refuse)
            self._note(one.request.id, one.verdict)

    def _latest(self, name: str) -> float:
        _, _, at, allowed_s = self.arrived[name]
        return at + allowed_s

    def _load(self, model: str, worker: str) -> WorkerLoad:
        rnd = self.rnd
        rows = []
        for i in range(rnd.choice([0, 3, 20, 40])):
            prompt = rnd.choice([1, 1, 1, 500])
            context = 0 if prompt > 1 else rnd.choice([100, 2000])
            tpot_s = rnd.choice([None, 0.02, 0.1])
            rows.append(RequestLoad(f"x{worker}{i}", rnd.choice([0, 1, 2]), prompt, context, 5, 50, None, tpot_s, 0.1))
        mine = [name for name in self.admitted if self.arrived[name][0] == model and rnd.random() < 0.3]
        rows += [RequestLoad(name, 1, 1, 300, 5, 50, None, None, 0.0) for name in mine]
        slots, blocks = rnd.choice([0, 8, 64]), rnd.choice([0, 400, 4000])
        started = min(slots, sum(row.context > 0 for row in rows))
        held = min(blocks, sum(-(-row.context // 16) for row in rows))
        return WorkerLoad(
            worker, model, blocks, blocks - held, slots, slots - started, 512, 8192, COEFFICIENTS, 1.0, 1.1, 1.2, rows
        )


def walk(world: World, *, actions: int) -> None:
    """A random walk through all that may happen."""
    rnd = world.rnd
    choices: list[Callable[[], None]] = [
        *[world.arrive] * 6,
        *[world.report] * 3,
        *[world.settle] * 2,
        world.cancel,
        world.expire,
        world.wake,
        lambda: world.report(whole=False),
        lambda: world.report(empty=rnd.random() < 0.2),
        lambda: world.confirm(rnd.choice([0.0, 0.9, 1.0])),
        lambda: world.pass_time(rnd.choice([0.01, 0.1, 1.0, 6.0])),
    ]
    for _ in range(actions):
        rnd.choice(choices)()
        world.check()
    world.end()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_everybody_is_answered_once_and_nothing_stays_reserved(kind: str, seed: int) -> None:
    """In every kind of admission, whatever is reported, cancelled, confirmed or never heard of again."""
    walk(World(random.Random(f"{kind} {seed}"), kind), actions=150)


def test_the_chaos_reaches_what_it_is_for() -> None:
    """All outcomes and the usual reasons of refusals occur, or the walks above would prove little."""
    seen: Counter[str] = Counter()
    for seed in range(8):
        for kind in KINDS:
            world = World(random.Random(f"{kind} {seed}"), kind)
            walk(world, actions=150)
            seen += world.seen
    reasons = ("no_worker", "queue_full", "deadline_exceeded", "ttft_unattainable", "tpot_unattainable", "kv_exhausted")
    assert min(seen[what] for what in ("Admit", "Defer", "Refuse", *reasons)) >= 10, seen


class Chaos(RuleBasedStateMachine):
    """The same, with the order of events found by search."""

    @initialize(seed=st.integers(0, 2**32), kind=st.sampled_from([*KINDS, "contract", "contract", "no-evict"]))
    def start(self, seed: int, kind: str) -> None:
        self.world = World(random.Random(seed), kind)
        self.world.report()

    @rule(count=st.integers(1, 12))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            self.world.arrive()

    @rule(whole=st.booleans(), empty=st.integers(0, 9))
    def report(self, whole: bool, empty: int) -> None:
        self.world.report(whole=whole, empty=not empty)

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @rule()
    def cancel(self) -> None:
        self.world.cancel()

    @rule()
    def expire(self) -> None:
        self.world.expire()

    @rule()
    def wake(self) -> None:
        self.world.wake()

    @rule(share=st.sampled_from([0.0, 0.5, 1.0]))
    def confirm(self, share: float) -> None:
        self.world.confirm(share)

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
