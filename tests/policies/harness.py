"""A scheduler, a toy worker, and an auditor between them that holds every step against the rules."""

from __future__ import annotations

from collections import Counter
from math import inf

import msgspec
from toy_worker import EOS, ToyWorker, reference

from policies.chunks import StepTime
from policies.config import SchedulerConfig
from policies.events import Event, Finished, FirstToken, Preempted, Scheduled
from policies.scheduler import Scheduler
from policies.step_time import Features, Ratios, step_time
from policies.vocabulary import (
    BLOCK_SIZE,
    Finish,
    Request,
    Sampling,
    Step,
    StepDone,
    StepTimeCoefficients,
    WorkerSpec,
    pack_tokens,
    unpack_tokens,
)

COEFFICIENTS = StepTimeCoefficients(0.01, 0.008, 0.0001)


class FixedStepTime:
    """A step-time model that does not learn, so that a test's numbers stay where it put them."""

    def __init__(self, coefficients: StepTimeCoefficients = COEFFICIENTS) -> None:
        self._coefficients = coefficients

    @property
    def coefficients(self) -> StepTimeCoefficients:
        return self._coefficients

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        return step_time(self._coefficients, tokens, attended, context, rows)

    def observe(self, features: Features, actual_s: float) -> None:
        pass

    def ratios(self) -> Ratios:
        return Ratios(1.0, 1.1, 1.2)


def worker_spec(
    *, blocks: int = 64, host_blocks: int = 0, slots: int = 8, tokens_per_step: int = 64, max_context: int = 512
) -> WorkerSpec:
    return WorkerSpec("m", "mock", blocks, host_blocks, 1000, slots, tokens_per_step, max_context, 1e6, COEFFICIENTS)


def make_request(
    name: str,
    prompt: list[int],
    max_tokens: int,
    *,
    tenant: str = "t",
    tier: int = 1,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    salt: bytes = b"",
    weight: float = 1.0,
) -> Request:
    return Request(
        name,
        1,
        tenant,
        "m",
        "gateway",
        pack_tokens(prompt),
        max_tokens,
        Sampling(),
        tier=tier,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        weight=weight,
        salt=salt,
    )


class Fences:
    """Nothing is overwritten while a step that touched it for somebody else is unacknowledged."""

    def __init__(self, size: int) -> None:
        self._touched: list[dict[tuple[str, int], int]] = [{} for _ in range(size)]

    def touch(self, block: int, owner: tuple[str, int], step: int) -> None:
        self._touched[block][owner] = step

    def write(self, block: int, owner: tuple[str, int], step: int, acknowledged: int) -> None:
        for other, last in self._touched[block].items():
            assert other == owner or last <= acknowledged, (
                f"step {step} overwrites block {block} for {owner}; step {last} touches it for {other}, "
                f"and only {acknowledged} is acknowledged"
            )
        self._touched[block] = {owner: step}


class Harness:
    """Drives one scheduler. Steps are executed when `execute` says so and acknowledged when `complete` does."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: SchedulerConfig | None = None,
        *,
        vocabulary: int = 1000,
        step_time: StepTime | None = None,
    ) -> None:
        self.spec = spec
        self.config = config or SchedulerConfig()
        self.vocabulary = vocabulary
        self.core = Scheduler(spec, config=self.config, step_time=step_time or FixedStepTime())
        self.now = 0.0
        self.salts: dict[str, bytes] = {}
        self.requests: dict[str, Request] = {}  # the newest attempt of each
        self.cancelled: set[str] = set()
        self.events: list[Event] = []
        self.finished: dict[tuple[str, int], Finished] = {}
        self.steps: list[Step] = []
        self.results: list[StepDone] = []  # executed, not acknowledged
        self.outputs: dict[tuple[str, int], list[int]] = {}  # what gateways were sent
        self.unreported: set[str] = set()  # over when their worker died, so nobody says so
        self._start_worker()

    def _start_worker(self) -> None:
        spec = self.spec
        self.worker = ToyWorker(spec, vocabulary=self.vocabulary, salts=self.salts, outputs=self.outputs)
        self.planned = self.acknowledged = 0
        self.steps.clear()
        self.results.clear()
        self._fences = (Fences(spec.blocks), Fences(spec.host_blocks))
        self._tables: dict[int, tuple[tuple[str, int], list[int], int]] = {}  # slot: owner, blocks, computed
        self._left: dict[str, tuple[tuple[str, int], list[int]]] = {}  # requests without a slot: owner, last blocks

    # What a client, the actor and the worker do

    def submit(self, request: Request) -> None:
        self.salts[request.id] = request.salt
        self.core.submit(request, self.now)
        self.requests[request.id] = request
        self._take_events()

    def cancel(self, name: str) -> None:
        self.core.cancel(name, self.now)
        self.cancelled.add(name)
        self._take_events()
        self.core.check_integrity()

    def seen(self, name: str) -> list[int]:
        """All outputs that the client of a request has got. What an attempt gives after the next began is ignored."""
        request = self.requests[name]
        return [*unpack_tokens(request.generated), *self.outputs.get((name, request.attempt), [])]

    def over(self, name: str) -> bool:
        """Whether the worker has ended a request, acknowledged or not."""
        seen = self.seen(name)
        return name in self.cancelled or len(seen) == self.requests[name].max_tokens or EOS in seen

    def resume(self, name: str) -> None:
        """Its gateway submits a live request again."""
        old = self.requests[name]
        self.submit(msgspec.structs.replace(old, attempt=old.attempt + 1, generated=pack_tokens(self.seen(name))))

    def deliver(self, request: Request, *, computed: int) -> None:
        """A request comes with its KV, which was written to the blocks that wait for it."""
        self.salts[request.id] = request.salt
        self.requests[request.id] = request
        self.core.deliver(request, self.now, computed=computed)
        self._left[request.id] = ((request.id, self.planned), self.core.kv_blocks(request.id))
        self.core.check_integrity()

    def hand_over(self, name: str) -> Request | None:
        """Another worker takes a request, and copies its KV from here until this is told to abandon it."""
        handed = self.core.hand_over(name, self.now, keep=True)
        self.core.check_integrity()
        if handed is not None:
            del self.requests[name]
        return handed

    def lose_worker(self) -> None:
        """The worker dies, with everything in flight; what was handed back comes again."""
        handed_back = [live.request.id for live in self.core.drop_all()]
        self._start_worker()
        for name, request in self.requests.items():
            if self.over(name) and (name, request.attempt) not in self.finished:
                self.unreported.add(name)
        for name in handed_back:
            if name not in self.unreported:
                self.resume(name)

    def plan(self) -> Step | None:
        before = len(self.events)
        alone = not self.core.in_flight
        step = self.core.plan(self.now)
        self._take_events()
        self.core.check_integrity()
        if step is None:
            if alone and self.core.requests():
                assert self.idle_reason(), "idle with live requests and nothing in flight"
            return None
        self.steps.append(step)
        self.planned = step.number
        preempted = any(isinstance(event, Preempted) for event in self.events[before:])
        self._audit(step, preempted=preempted, alone=alone)
        return step

    def idle_reason(self) -> str:
        """Why nothing was planned with live requests and nothing in flight; empty: the core is not work conserving.

        A static batch waits until it is full, a dynamic one for its timeout too, unless somebody is back from
        preemption; and blocks may be held for what is on its way.
        """
        core, config = self.core, self.config
        waiting, size = core._waiting, min(config.batch_size or self.spec.slots, core._running.size)
        gathers = not len(core._running) and 0 < len(waiting) < size and not waiting.returning
        if config.batching == "static" and gathers:
            return "a static batch gathers"
        if config.batching == "dynamic" and gathers and self.now < core.wake_at(self.now) < inf:
            return "a dynamic batch gathers"
        return "blocks are held for what is on its way" if core._kv.transit.held else ""

    def execute(self) -> None:
        """The worker runs all steps that it was sent."""
        while self.steps and self.worker.last < self.steps[-1].number:
            step = next(s for s in self.steps if s.number == self.worker.last + 1)
            self.results.append(self.worker.execute(step))

    def complete(self, which: int = 0) -> list[Event]:
        """Acknowledge a result, by default the oldest."""
        before = len(self.events)
        done = self.results.pop(which)
        self.events += self.core.complete(done, self.now)
        self._note()
        self.acknowledged = self.planned - self.core.in_flight
        self.steps = [step for step in self.steps if step.number > self.acknowledged]
        self.core.check_integrity()
        return self.events[before:]

    def run(self, *, most: int = 5000) -> None:
        """Until everything is over, with as many steps in flight as may be."""
        for _ in range(most):
            self.now += 0.01
            while self.plan() is not None:
                pass
            self.execute()
            if not self.results:
                break
            self.complete()
        else:
            raise AssertionError(f"not over after {most} steps: {self.core.requests()}")

    # What must hold

    def _take_events(self) -> None:
        self.events += self.core.take_events()
        self._note()

    def _note(self) -> None:
        for event in self.events:
            if isinstance(event, Finished):
                key = (event.request, event.attempt)
                assert self.finished.setdefault(key, event) is event, f"{key} is over twice"

    def _audit(self, step: Step, *, preempted: bool, alone: bool) -> None:
        assert sum(step.counts) <= self.spec.tokens_per_step
        assert all(count > 0 for count in step.counts)
        if preempted and step.new:
            assert alone, "a step that preempts starts others"
            assert len(step.new) == len(step.slots), "a step that preempts starts others"
        assert self.core.in_flight <= self.config.steps_in_flight
        device, host = self._fences
        n, acknowledged = step.number, self.acknowledged
        owners: dict[int, tuple[str, int]] = {}
        for slot in step.drop:
            owner, blocks, _ = self._tables.pop(slot)
            if owner[0] not in self._left or self._left[owner[0]][0][1] < owner[1]:
                self._left[owner[0]] = (owner, blocks)  # else it went, and came back with its KV before this step
        for owner, blocks in (*self._left.values(), *((owner, blocks) for owner, blocks, _ in self._tables.values())):
            owners |= dict.fromkeys(blocks, owner)
        for block, saved in step.swap_out:
            device.touch(block, owners[block], n)
            host.write(saved, ("swap", n), n, acknowledged)
        for new in step.new:
            owner, blocks = self._left.pop(new.request, ((new.request, n), []))
            if blocks[:1] != new.blocks[:1]:
                owner = (new.request, n)  # it kept none of its blocks
            self._tables[new.slot] = (owner, list(new.blocks), new.computed)
        for saved, block in step.swap_in:
            host.touch(saved, ("swap", n), n)
            owner = next(owner for owner, blocks, _ in self._tables.values() if block in blocks)
            device.write(block, owner, n, acknowledged)
        for slot, block in step.grown:
            self._tables[slot][1].append(block)
        for slot, count in zip(step.slots, step.counts, strict=True):
            owner, blocks, computed = self._tables[slot]
            for i in range(computed // BLOCK_SIZE):
                device.touch(blocks[i], owner, n)
            for i in range(computed // BLOCK_SIZE, -(-(computed + count) // BLOCK_SIZE)):
                device.write(blocks[i], owner, n, acknowledged)
            self._tables[slot] = (owner, blocks, computed + count)

    def check_end(self) -> None:
        """After everything is over: nobody lost, nothing wrong, every block back."""
        assert not self.core.requests()
        assert not self.core.in_flight
        load = self.core.load(self.now, "w")
        assert (load.free_blocks, load.free_slots, load.requests) == (self.spec.blocks, load.slots, [])
        for name, request in self.requests.items():
            expected, finish = reference(request, self.vocabulary)
            seen = self.seen(name)
            if name in self.unreported:
                assert seen == expected[: len(seen)]
                continue
            end = self.finished[name, request.attempt]
            if end.finish is Finish.cancelled:
                assert name in self.cancelled
                assert seen == expected[: len(seen)], f"{name}: wrong outputs before it was cancelled"
            else:
                assert (seen, end.finish) == (expected, finish), f"{name}: wrong outputs"
            assert end.generated == len(seen), f"{name}: {end.generated} outputs are reported, {len(seen)} were sent"
        preemptions = Counter((e.request, e.attempt) for e in self.events if isinstance(e, Preempted))
        assert all(count <= self.config.max_preemptions for count in preemptions.values())
        starts = Counter((e.request, e.attempt) for e in self.events if isinstance(e, Scheduled))
        firsts = Counter((e.request, e.attempt) for e in self.events if isinstance(e, FirstToken))
        assert not starts or max(starts.values()) == 1
        assert not firsts or max(firsts.values()) == 1
