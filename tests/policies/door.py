"""`Admission` in front of simulated workers: plays arrivals on a virtual clock, and keeps what became of each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from worker_sim import Job, Worker

from policies.admission import Admission, Admit, Decided, Defer, Refuse, Verdict
from policies.vocabulary import Request, Sampling, WorkerLoad


def request(
    name: str,
    *,
    tenant: str = "gold",
    prompt: int = 200,
    max_tokens: int = 100,
    tier: int = 0,
    ttft_s: float | None = 1.0,
    tpot_s: float | None = 0.05,
    weight: float = 1.0,
    model: str = "m",
) -> Request:
    """A request under contract, unless told otherwise."""
    return Request(
        name,
        1,
        tenant,
        model,
        "g",
        bytes(4 * prompt),
        max_tokens,
        Sampling(),
        tier=tier,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        weight=weight,
    )


@dataclass
class Arrival:
    at_s: float
    request: Request
    outputs: int
    committed: bool = True
    patience_s: float = 5.0


def poisson(
    seed: int,
    rate: float,
    duration_s: float,
    tenant: str,
    *,
    contract: bool = True,
    outputs: tuple[int, int] = (20, 120),
    start_s: float = 0.0,
) -> list[Arrival]:
    """Prompts of 16 to 1,500 tokens, outputs of 20 to 120 of at most 200."""
    rng, now, arrivals = random.Random(seed), start_s, list[Arrival]()
    terms: dict[str, object] = {} if contract else {"tier": 2, "ttft_s": None, "tpot_s": None}
    while (now := now + rng.expovariate(rate)) < start_s + duration_s:
        prompt = int(16 + 1484 * rng.random() ** 2)
        wanted = request(f"{tenant}/{len(arrivals)}", tenant=tenant, prompt=prompt, max_tokens=200, **terms)  # type: ignore[arg-type]
        arrivals.append(Arrival(now, wanted, rng.randint(*outputs)))
    return arrivals


@dataclass
class Door:
    """Reports come every `every_s`. `verdicts` has the last word on every request."""

    admission: Admission
    worker: Worker = field(default_factory=lambda: Worker(slots=16, blocks=3000, noise=0.05, seed=1))
    every_s: float = 0.05
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    _arrivals: dict[str, Arrival] = field(default_factory=dict)
    _ended: int = 0

    def load(self) -> WorkerLoad:
        return self.worker.load(1.1)

    def play(self, arrivals: list[Arrival]) -> None:
        """All of it, to the end of the last request."""
        self._report()
        for arrival in sorted(arrivals, key=lambda arrival: arrival.at_s):
            self._until(arrival.at_s)
            self._arrivals[arrival.request.id] = arrival
            verdict = self.admission.arrive(
                arrival.request, arrival.at_s, committed=arrival.committed, patience_s=arrival.patience_s
            )
            self._apply(arrival, verdict)
            self._answer(self.admission.expire(arrival.at_s))
        while self.worker.jobs or len(self.admission):
            self._until(self.worker.now + self.every_s)

    def share(self, tenant: str, *, met: bool = True) -> float:
        """Of the tenant's arrivals, those that were served under contract and kept it."""
        mine = [name for name in self.verdicts if name.startswith(f"{tenant}/")]
        kept = [name for name in mine if name in self.jobs and (not met or self.jobs[name].met())]
        return len(kept) / len(mine)

    def _until(self, instant: float) -> None:
        while self.worker.now < instant:
            self.worker.until(min(instant, self.worker.now + self.every_s))
            self._report()

    def _report(self) -> None:
        now = self.worker.now
        for job in self.worker.done[self._ended :]:
            tenant = job.id.split("/")[0]
            attained = None if job.ttft_s is None else job.met()
            self.admission.settled(job.id, tenant, outputs=job.generated, is_whole=True, ttft_kept=attained, now=now)
        self._ended = len(self.worker.done)
        self.admission.report("m", [self.load()], now)
        self._answer([*self.admission.reexamine("m", now), *self.admission.expire(now)])

    def _answer(self, decided: list[Decided]) -> None:
        for one in decided:
            self._apply(self._arrivals[one.request.id], one.verdict)

    def _apply(self, arrival: Arrival, verdict: Verdict) -> None:
        wanted = arrival.request
        before = self.verdicts.get(wanted.id)
        assert before is None or isinstance(before, Defer), f"{wanted.id} is decided twice"
        self.verdicts[wanted.id] = verdict
        if isinstance(verdict, Admit):
            ttft = wanted.ttft_s if verdict.ttft_s is not None else None
            job = Job(
                wanted.id,
                verdict.tier,
                len(wanted.prompt) // 4,
                arrival.outputs,
                wanted.max_tokens,
                arrival.at_s,
                ttft,
                verdict.tpot_s,
            )
            self.jobs[wanted.id] = job
            self.worker.jobs.append(job)

    def refused(self, tenant: str) -> int:
        """Of the tenant's."""
        return sum(isinstance(v, Refuse) for name, v in self.verdicts.items() if name.startswith(f"{tenant}/"))
