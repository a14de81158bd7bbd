"""A worker on a virtual clock, step by step: the ground truth that forecasts and decisions are held against.

It serves as the scheduler does: one token for every decoding row, then prompts by tier and deadline in what is left of
the step; a contract takes slots and blocks from flex, which then recomputes. Outputs end where `outputs` says, which
the reports do not tell.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import inf

from policies.step_time import step_time
from policies.vocabulary import BLOCK_SIZE, RequestLoad, StepTimeCoefficients, Tier, WorkerLoad

COEFFICIENTS = StepTimeCoefficients(0.010, 0.006, 4e-5, 1e-9, 5e-8, 2e-5)


@dataclass
class Job:
    id: str
    tier: int
    prompt: int
    outputs: int  # it really produces
    max_tokens: int
    arrived_s: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    computed: int = 0
    generated: int = 0
    slot: bool = False
    first_s: float | None = None
    last_s: float = 0.0

    @property
    def left(self) -> int:
        return self.prompt + self.generated - self.computed

    def met(self) -> bool:
        """Whether the finished request kept its contract."""
        if self.first_s is None or (self.ttft_s is not None and self.first_s - self.arrived_s > self.ttft_s):
            return False
        pace = (self.last_s - self.first_s) / max(1, self.generated - 1)
        return self.tpot_s is None or pace <= self.tpot_s


@dataclass
class Worker:
    slots: int = 32
    blocks: int = 4000
    budget: int = 512
    noise: float = 0.0
    seed: int = 0
    now: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)
    preempted: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def _used(self) -> int:
        return sum(-(-max(j.computed, j.prompt) // BLOCK_SIZE) for j in self.jobs if j.slot)

    def _order(self, job: Job) -> tuple[int, float, float]:
        if job.generated:
            return job.tier, -inf, job.arrived_s
        due = inf if job.ttft_s is None else job.arrived_s + job.ttft_s
        return job.tier, due if due >= self.now else 1e18, job.arrived_s

    def _start(self, job: Job) -> bool:
        need = -(-(job.left + 1) // BLOCK_SIZE)
        while job.tier < Tier.flex and (self._held() >= self.slots or self._used() + need > self.blocks):
            victim = next((j for j in reversed(self.jobs) if j.slot and j.tier == Tier.flex), None)
            if victim is None:
                return False
            victim.slot, victim.computed = False, 0
            self.preempted += 1
        if self._held() >= self.slots or self._used() + need > self.blocks:
            return False
        job.slot = True
        return True

    def _held(self) -> int:
        return sum(j.slot for j in self.jobs)

    def step(self) -> None:
        """One forward pass; the clock moves by its duration."""
        decoding = [j for j in self.jobs if j.slot and j.left == 1 and j.generated]
        room, attended = self.budget - len(decoding), 0.0
        context = sum(j.computed for j in decoding)
        took, blocked = {j.id: 1 for j in decoding}, False
        for job in sorted((j for j in self.jobs if j not in decoding), key=self._order):
            if room <= 0:
                break
            if not job.slot and (blocked or not self._start(job)):
                blocked = True  # nobody overtakes the head, but what has begun goes on
                continue
            chunk = min(room, job.left)
            attended += chunk * (job.computed + chunk / 2)
            took[job.id] = chunk
            room -= chunk
        tokens = sum(took.values())
        noise = self._random.lognormvariate(0, self.noise) if self.noise else 1.0
        self.now += step_time(COEFFICIENTS, tokens, attended, context, len(took)) * noise
        for job in list(self.jobs):
            chunk = took.get(job.id, 0)
            if not chunk or not job.slot:
                continue
            job.computed += chunk
            if job.left == 0:
                job.generated += 1
                job.first_s = job.first_s or self.now
                job.last_s = self.now
                if job.generated >= job.outputs:
                    self.jobs.remove(job)
                    self.done.append(job)

    def until(self, instant: float) -> None:
        """Serve until that instant; an idle worker waits."""
        while self.jobs and self.now < instant:
            self.step()
        self.now = max(self.now, instant)

    def load(self, ratio: float = 1.0) -> WorkerLoad:
        """The report, as the scheduler publishes it."""
        reports = [
            RequestLoad(
                j.id,
                j.tier,
                j.left,
                j.computed,
                j.generated,
                j.max_tokens - j.generated,
                None if j.ttft_s is None or j.generated else j.arrived_s + j.ttft_s - self.now,
                j.tpot_s,
                0.0
                if j.tpot_s is None or j.first_s is None
                else j.first_s + (j.generated - 1) * j.tpot_s + j.tpot_s - self.now,
            )
            for j in self.jobs
        ]
        return WorkerLoad(
            "w",
            "m",
            self.blocks,
            max(0, self.blocks - self._used()),
            self.slots,
            self.slots - self._held(),
            self.budget,
            8192,
            COEFFICIENTS,
            1.0,
            ratio,
            ratio * 1.1,
            reports,
        )
