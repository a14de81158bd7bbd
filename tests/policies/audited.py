"""Schedulers under chaos, audited: any configuration, any load, two workers between which requests move."""

from __future__ import annotations

import random
from copy import deepcopy
from math import inf
from typing import get_args

import msgspec
from harness import FixedStepTime, Harness, make_request, worker_spec

from policies.config import Batching, Order, Preemption, SchedulerConfig
from policies.events import Finished, Preempted
from policies.order import DeviceCost
from policies.vocabulary import BLOCK_SIZE, Finish, Request, Step, WorkerSpec

PREFIXES = [[3] * 80, [3] * 32 + [4] * 48]


def draw_config(
    rnd: random.Random, order: str | None = None, batching: str | None = None, preemption: str | None = None
) -> SchedulerConfig:
    """Any configuration, or any of a triple of policies."""
    choice = rnd.choice
    return SchedulerConfig(
        steps_in_flight=choice([1, 2, 2, 3]),
        batching=batching or choice(get_args(Batching)),  # type: ignore[arg-type]
        batch_size=choice([0, 0, 1, 3]),
        batch_timeout_s=choice([0.0, 0.05]),
        chunk_tokens=choice([0, 0, 2, 20]),
        max_chunk=choice([0, 0, 0, 1, 7]),
        min_chunk=choice([1, 64]),
        order=order or choice(get_args(Order)),  # type: ignore[arg-type]
        aging_s=choice([0.05, 10.0]),
        mlfq_quantum_s=choice([0.01, 0.05]),
        mlfq_levels=choice([1, 4]),
        starvation_s=choice([0.2, 3.0]),
        patience_s=choice([0.1, 30.0]),
        patience_share=choice([1, 3, 8]),
        shed_hopeless=choice([False, False, True]),
        watermark=choice([0.0, 0.01, 0.2]),
        preemption=preemption or choice(get_args(Preemption)),  # type: ignore[arg-type]
        max_preemptions=choice([0, 1, 2, 5]),
        preempt_for_tier=choice([True, True, False]),
        min_run_steps=choice([0, 3]),
        offload_share=choice([0.0, 0.2, 1.0]),
        flex_yields=choice([False, True]),
        prefix_cache=choice([True, True, True, False]),
        single_flight_tokens=choice([16, 32, 1024]),
        new_tokens_per_step=choice([50, 65_536]),
        force_preempt_every=choice([0, 0, 0, 1, 2, 7]),
    )


def draw_spec(rnd: random.Random) -> WorkerSpec:
    """A worker, most often with far too few blocks."""
    return worker_spec(
        blocks=rnd.choice([6, 8, 12, 18, 40]),
        host_blocks=rnd.choice([0, 8, 40]),
        slots=rnd.choice([1, 4, 8]),
        tokens_per_step=rnd.choice([8, 24, 64, 256]),
    )


def draw_request(rnd: random.Random, name: str, *, blocks: int, vocabulary: int) -> Request:
    """Any request that the pool could hold, often with a prefix that others have too."""
    outputs = rnd.choice([rnd.randint(1, 30), rnd.randint(1, 30), rnd.randint(40, 80)])
    prompt = [t % vocabulary for t in rnd.choice(PREFIXES)][: rnd.choice([0, 0, 16, 40, 64])]
    prompt += [rnd.randrange(vocabulary) for _ in range(rnd.randint(1, 30))]
    return make_request(
        name,
        prompt[: blocks * BLOCK_SIZE - outputs],
        outputs,
        tenant=rnd.choice("xyz"),
        tier=rnd.randint(0, 2),
        ttft_s=rnd.choice([None, 0.05, 1.0]),
        tpot_s=rnd.choice([None, None, 0.011, 0.02]),
        salt=rnd.choice([b"one", b"other"]),
        weight=rnd.choice([1.0, 1.0, 3.0]),
    )


class Audited(Harness):
    """A harness that holds every step against the rules of its configuration, and asks why when there is none."""

    def __init__(self, spec: WorkerSpec, config: SchedulerConfig, *, vocabulary: int = 1000) -> None:
        self.slots_of: dict[int, str] = {}
        super().__init__(spec, config, vocabulary=vocabulary)
        size = min(spec.slots, spec.tokens_per_step)
        self.budget = spec.tokens_per_step
        if config.batching in ("chunked", "splitfuse") and config.chunk_tokens:
            self.budget = min(self.budget, config.chunk_tokens)
        self.size = min(config.batch_size or size, size, self.budget)
        self.most_preemptions = 0 if config.preemption == "none" else config.max_preemptions
        self.preemptions: dict[tuple[str, int], int] = {}
        self.fillers = 0

    def _start_worker(self) -> None:
        self.slots_of.clear()
        super()._start_worker()

    def plan(self) -> Step | None:
        before, alone = len(self.events), not self.core.in_flight
        step = super().plan()
        victims = [event for event in self.events[before:] if isinstance(event, Preempted)]
        self._check_preempted(victims, step, alone=alone)
        if step is not None:
            self._check_step(step)
            self._check_filled(step, victims)
        elif self.core.in_flight < self.config.steps_in_flight:
            if not victims or alone:  # who gives way while a step runs leaves the start to the next plan
                self._check_blocked()
            if alone and self.core.requests():
                self._check_wake()
        return step

    def _check_step(self, step: Step) -> None:
        config = self.config
        assert sum(step.counts) <= self.budget, "more tokens than the budget"
        assert len(step.slots) <= self.size, "more rows than the batch takes"
        if config.max_chunk:
            assert max(step.counts, default=0) <= config.max_chunk, "a piece of a prompt is larger than it may be"

    def _check_filled(self, step: Step, victims: list[Preempted]) -> None:
        """A step has room left only for a reason. Feedback queues and `flex_yields` choose who decodes; prompts are cut
        or kept out for the pace (time-budgeted) and for whole ones (continuous, static, dynamic)."""
        config, core = self.config, self.core
        taken = set(step.slots)
        if config.order != "mlfq" and not config.flex_yields:
            idle = [row for row in core._running.decoding if row.slot not in taken]
            assert all(row.computed + row.in_flight >= row.room for row in idle), "somebody could decode, and does not"
        if config.batching not in ("chunked", "splitfuse"):
            return
        if sum(step.counts) < self.budget and len(taken) < self.size:
            assert all(row.slot in taken for row in core._running.prefilling), "room is left, and a prompt stands still"
            if not victims:
                self._check_head(sum(len(new.tokens) // 4 for new in step.new))

    def _check_preempted(self, victims: list[Preempted], step: Step | None, *, alone: bool) -> None:
        """A victim has no tokens in the step that evicts it, nobody starts in it, and K times are the most."""
        for event in victims:
            key = (event.request, event.attempt)
            self.preemptions[key] = self.preemptions.get(key, 0) + 1
            assert self.preemptions[key] <= self.most_preemptions, f"{key} is preempted after it was immune"
        if step is None:
            return
        for slot in step.drop:
            self.slots_of.pop(slot)
        starts = {new.slot: new.request for new in step.new}
        if victims:
            evicted = {event.request for event in victims}
            took_part = {self.slots_of[slot] for slot in step.slots if slot in self.slots_of and slot not in starts}
            assert not evicted & took_part, "a victim has tokens in the step that evicts it"
            # Where all gave way at once, there was no step to evict them in, and the next one starts somebody.
            assert not starts or (alone and not took_part), "a step that preempts starts somebody"
        self.slots_of |= starts

    def _check_blocked(self) -> None:
        """Nothing was planned though a further step could be in flight: nobody could have been in it."""
        core = self.core
        free = core._kv.device.free
        for row in core._running.decoding:
            assert row.computed + row.in_flight >= row.room, f"{row.request.id} could decode"
            assert not free, f"{row.request.id} could have had a block to decode"
        assert not core._running.prefilling, "a prompt could go on"
        if not core._running.decoding and self.config.batching not in ("static", "dynamic"):
            self._check_head(0)  # the rule of a batch that gathers is asked for with nothing in flight

    def _check_head(self, new_tokens: int) -> None:
        """The head of the queue could not have started (too) in the step that was planned, if any."""
        core, pressure = self.core, self.core._planner._pressure
        head = core._waiting.head(self.now)
        if head is None:
            return
        row = head[0]
        start = core._kv.look(row)
        blocked = (
            not core._running.free_slots
            or len(core._running) >= core._planner._batching.hold
            or row.in_flight
            or not pressure.may_reserve(row)
            or core._planner._single_flight.wait(row, start)
            or start.cost + pressure.reserve() > core._kv.device.free
            or (new_tokens and new_tokens + len(row.tokens) > self.config.new_tokens_per_step)
        )
        assert blocked, f"{row.request.id} could start"

    def _check_wake(self) -> None:
        """With nothing in flight, what only time changes has an instant, and at that something happens."""
        at = self.core.wake_at(self.now)
        assert at >= self.now
        gathers = self.config.batching == "dynamic" and self.idle_reason().endswith("gathers")
        assert not gathers or at < inf, "only time makes a dynamic batch start, and no time is told"
        if at == inf:
            return
        fork = deepcopy(self.core)
        fork.take_events()
        step = fork.plan(at)
        assert step is not None or fork.take_events() or fork.wake_at(at) > at, "woken for nothing, again and again"

    def fill(self) -> None:
        """Somebody for a static batch that would wait for ever."""
        self.fillers += 1
        self.submit(make_request(f"filler{self.fillers}", [1], 1, tier=2))

    def settle(self, *, most: int = 5000) -> None:
        """Until everything is over: time passes and batches are filled as need be."""
        for _ in range(most):
            self.run(most=most)
            if not self.core.requests() or self.core._kv.transit.held:
                return
            if self.config.batching == "static" and len(self.core._waiting):
                self.fill()
            else:
                self.now = max(self.now, self.core.wake_at(self.now))
                assert self.now < inf, "time alone changes nothing, and nobody else comes"
        raise AssertionError(f"not over: {self.core.requests()}")

    def _shed(self, request: Request, end: Finished) -> bool:
        """Whether a request was dropped for a deadline that it could not keep, and rightly."""
        if not self.config.shed_hopeless or end.finish is not Finish.error:
            return False
        cost = DeviceCost(FixedStepTime(), tokens_per_step=self.spec.tokens_per_step)
        assert end.first_scheduled_at is None
        assert request.ttft_s is not None
        known = (len(request.prompt) + len(request.generated)) // 4
        assert end.at + cost.alone_s(known, 0) > end.queued_at + request.ttft_s - 1e-9, "it could have been in time"
        return True

    def check_end(self) -> None:
        shed = [
            name
            for name, request in self.requests.items()
            if (end := self.finished.get((name, request.attempt))) is not None and self._shed(request, end)
        ]
        gone = {name: self.requests.pop(name) for name in shed}
        for name, request in gone.items():
            seen = self.outputs.get((name, request.attempt), [])
            assert not seen, f"{name} was dropped before it began, but has outputs"
        super().check_end()
        self.requests |= gone


class Pair:
    """Two audited workers, requests that move between them, and everything that goes wrong on the way."""

    def __init__(self, rnd: random.Random, configs: list[SchedulerConfig]) -> None:
        vocabulary = rnd.choice([7, 100, 1000])
        self.workers = [Audited(draw_spec(rnd), config, vocabulary=vocabulary) for config in configs]
        self.blocks = min(worker.spec.blocks for worker in self.workers)
        self.coming: dict[str, tuple[Audited, Audited]] = {}
        self.stopped: dict[str, tuple[Audited, Audited, Request, int]] = {}
        self.submitted = self.delivered = self.crashes = 0

    def submit(self, rnd: random.Random, worker: Audited) -> None:
        self.submitted += 1
        worker.submit(draw_request(rnd, f"r{self.submitted}", blocks=self.blocks, vocabulary=worker.vocabulary))

    def begin(self, source: Audited, which: int) -> None:
        """Room is made elsewhere for a request that runs here."""
        destination = self._other(source)
        live = [entry.request for entry in source.core.requests() if entry.request.id not in self.coming]
        live = [request for request in live if not request.id.startswith("filler")]
        if not live:
            return
        request = live[which % len(live)]
        tokens = source.core.kv_tokens(request.id)
        if tokens and destination.core.expect(request, destination.now, tokens=tokens):
            self.coming[request.id] = (source, destination)

    def stop(self, which: int) -> None:
        """It stops there, if there is room for all that it has by now."""
        if not self.coming:
            return
        name = list(self.coming)[which % len(self.coming)]
        source, destination = self.coming.pop(name)
        tokens, request = source.core.kv_tokens(name), source.requests[name]
        room = tokens > 0 and destination.core.expect(request, destination.now, tokens=tokens)
        handed = source.hand_over(name) if room else None
        if handed is None:
            destination.core.abandon(name)
        else:
            again = msgspec.structs.replace(handed, attempt=handed.attempt + 1)
            self.stopped[name] = (source, destination, again, tokens)

    def arrive(self, which: int, *, lost: bool = False) -> None:
        """It goes on here, with its KV or, where that was lost, without."""
        if not self.stopped:
            return
        name = list(self.stopped)[which % len(self.stopped)]
        source, destination, request, tokens = self.stopped.pop(name)
        blocks = -(-tokens // BLOCK_SIZE)
        there, here = source.core.kv_blocks(name)[:blocks], destination.core.kv_blocks(name)[:blocks]
        if lost or len(there) < blocks or len(here) < blocks:  # one of them died meanwhile
            destination.core.abandon(name)
        else:
            for a, b in zip(there, here, strict=True):
                destination.worker.device[b] = source.worker.device[a][:]
            self.delivered += 1
        source.core.abandon(name)
        destination.deliver(request, computed=tokens)

    def crash(self, worker: Audited) -> None:
        self.crashes += 1
        worker.lose_worker()

    def cancel(self, worker: Audited, which: int) -> None:
        if worker.requests:
            worker.cancel(list(worker.requests)[which % len(worker.requests)])

    def submit_again(self, worker: Audited, which: int) -> None:
        """A message comes twice (ignored), or a gateway submits a live request as its next attempt."""
        if not worker.requests:
            return
        name = list(worker.requests)[which % len(worker.requests)]
        if not worker.over(name) and (name, worker.requests[name].attempt) not in worker.finished:
            if which % 2:
                worker.submit(worker.requests[name])
            else:
                worker.resume(name)

    def end(self) -> None:
        """Everything on its way arrives, everybody is served, and every account is balanced."""
        while self.coming:
            self.stop(0)
        while self.stopped:
            self.arrive(0)
        for worker in self.workers:
            worker.settle()
            worker.check_end()
            assert not worker.core._kv.host.held
            for (name, attempt), end in worker.finished.items():
                request = worker.requests.get(name)
                if request is not None and request.attempt > attempt:
                    assert end.finish in (Finish.cancelled, Finish.error), "an earlier attempt was served too"

    def _other(self, worker: Audited) -> Audited:
        return self.workers[1 - self.workers.index(worker)]
