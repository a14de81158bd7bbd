"""False refusals and false admissions: what would have become of a request, had it been treated the other way?

A refusal is false if the request, let in at its arrival on the worker that placement finds best, has its contract kept
and no other request that was kept is broken by it. An admission is false if its contract was broken, or if without it
more of the others would have been kept. A refusal that was said to be for ever (it is impossible on an idle worker) is
judged alike: only a fork that keeps its contract makes it false.

The simulation is deterministic, so both are known exactly, without a model of anything: one replay walks through the
run, and at the arrival of each request of a sample it forks, the fork goes on with that one decision flipped, and its
outcomes are compared with those of the run. All others are decided as they were (see `scripted_door`). They are the
requests in contract that were admitted and that were under way while the one was: those who came later are touched only
through these. A fork ends when these are over, at the latest LONGEST_S after the one.

Whether the time to come back was true is another question, that of the client: there the request comes again when it
was told, in a fork of the real run, and the real admission decides on it and on all who come after.

With noise on step times, a fork draws other noise than the run from the flip on: then others flip by chance, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, nextafter

import msgspec

from policies.admission import Admit
from policies.overload import Level
from simulator.door import Door, DoorMaker
from simulator.errors import BadFleet, LawBroken
from simulator.judgement import Case, Counterfactuals, sum_up
from simulator.metrics import in_contract
from simulator.moving import MovingSimulation
from simulator.records import Outcome, Result
from simulator.scripted_door import Decision, RecordingDoor, ScriptedDoor
from simulator.simulation import Simulation

__all__ = ["LONGEST_S", "judge"]

#: A fork is followed so long after the request was over. Who is not over by then is not compared.
LONGEST_S = 120.0
_LOOK_EVERY_S = 0.5

Progress = Callable[[float], None]


def judge(
    make: Callable[[DoorMaker], Simulation], *, sample: int, seed: int = 0, progress: Progress | None = None
) -> tuple[Result, Counterfactuals]:
    """Run a simulation, then judge `sample` of its refusals and as many of its admissions, drawn by `seed`.

    :param make: makes the simulation, always the same, with the door that it is given; without migration, and with
        workers of one kind.
    :param progress: told the share that is done: a third for the run, the rest for the forks.
    :raises BadFleet: in this one requests move between workers: where each was is not the door's to say.
    :raises LawBroken: the simulation, replayed, came out otherwise.
    """
    tell = progress or (lambda done: None)
    decisions: dict[str, Decision] = {}
    levels: list[tuple[float, Level]] = []
    run = make(partial(RecordingDoor, decisions=decisions, levels=levels))
    if isinstance(run, MovingSimulation):
        raise BadFleet("refusals and admissions can be judged only where requests stay on one worker")
    base = run.run(lambda done: tell(done / 3))
    _name_workers(decisions, base)
    outcomes = base.outcomes
    contract = [i for i, outcome in enumerate(outcomes) if in_contract(outcome)]
    drawn = random.Random(seed)
    refused = [i for i in contract if outcomes[i].decision == "refused" and outcomes[i].reason != "unservable"]
    admitted = [i for i in contract if outcomes[i].decision in ("admitted", "shed")]
    chosen = sorted(
        drawn.sample(refused, min(sample, len(refused))) + drawn.sample(admitted, min(sample, len(admitted)))
    )
    replay = make(partial(ScriptedDoor, decisions=decisions, levels=levels))
    cases: list[Case] = []
    for at in chosen:
        cases.append(_Flip(replay, outcomes, at).case())
        tell((1 + len(cases) / max(1, len(chosen))) / 3)
    replay.run_until(inf)
    if list(replay.outcomes) != outcomes:
        raise LawBroken("the replay of all decisions came out otherwise than the run")
    cases = _retried(make, outcomes, dict(zip(chosen, cases, strict=True)), lambda done: tell((2 + done) / 3))
    return base, sum_up(
        cases,
        refused=len(refused),
        admitted=len(admitted),
        lengths=[outcomes[i].prompt_tokens for i in contract],
    )


def _name_workers(decisions: dict[str, Decision], base: Result) -> None:
    """The workers that placement chose, so that in a fork it chooses them again."""
    if base.workers == 1:
        return
    for outcome in base.outcomes:
        decision = decisions[outcome.id]
        if isinstance(decision.verdict, Admit) and outcome.worker and not decision.verdict.worker:
            verdict = msgspec.structs.replace(decision.verdict, worker=outcome.worker)
            decisions[outcome.id] = msgspec.structs.replace(decision, verdict=verdict)


class _Flip:
    """One decision, flipped in a fork of `replay`, which is taken to its arrival."""

    def __init__(self, replay: Simulation, outcomes: Sequence[Outcome], at: int) -> None:
        self._replay, self._outcomes, self._at = replay, outcomes, at
        self._was = outcomes[at]

    def case(self) -> Case:
        """What came of it."""
        return self._let_in() if self._was.decision == "refused" else self._kept_out()

    def _let_in(self) -> Case:
        was, fork = self._was, self._fork()
        due_s = inf if was.ttft_s is None else was.arrived_s + was.ttft_s
        while fork.is_live(was.id) or len(fork.outcomes) <= self._at:
            fork.run_until(fork.now + _LOOK_EVERY_S)
            if fork.now > due_s and fork.outcomes[self._at].first_token_s is None:
                break
        mine = fork.outcomes[self._at]
        if not mine.met:
            return self._case(mine, is_false=False)
        others = self._others(_over_s(mine))
        lost, gained = self._compare(fork, others, _over_s(mine))
        return self._case(mine, is_false=not lost, lost=lost, gained=gained)

    def _kept_out(self) -> Case:
        was = self._was
        if not was.met:
            return self._case(was, is_false=True)
        others = self._others(_over_s(was))
        if all(self._outcomes[other].met for other in others):  # nobody to save
            return self._case(was, is_false=False)
        gained, lost = self._compare(self._fork(), others, _over_s(was))
        return self._case(was, is_false=lost > gained, lost=lost, gained=gained)

    def _fork(self) -> Simulation:
        self._replay.run_until(nextafter(self._was.arrived_s, -inf))
        fork = self._replay.fork()
        assert isinstance(fork.door, ScriptedDoor)
        fork.door.flip(self._was.id)
        return fork

    def _others(self, over_s: float) -> list[int]:
        """Those admitted in contract that were under way at some time between its arrival and `over_s`."""
        return [
            i
            for i, other in enumerate(self._outcomes)
            if i != self._at
            and other.arrived_s <= over_s
            and other.decision in ("admitted", "shed")
            and in_contract(other)
            and _over_s(other) >= self._was.arrived_s
        ]

    def _compare(self, fork: Simulation, others: list[int], over_s: float) -> tuple[int, int]:
        """How many others are met in the run and not in the fork, and the other way round."""
        last_s = over_s + LONGEST_S
        fork.run_until(max(fork.now, over_s))
        waited = list(others)
        while fork.now < last_s:
            waited = [i for i in waited if fork.is_live(self._outcomes[i].id)]
            if not waited:
                break
            fork.run_until(min(last_s, fork.now + _LOOK_EVERY_S))
        first = second = 0
        for i in others:
            was, now = self._outcomes[i].met, fork.outcomes[i].met
            if was == now or fork.is_live(self._outcomes[i].id):
                continue
            first += was
            second += now
        return first, second

    def _case(self, mine: Outcome, *, is_false: bool, lost: int = 0, gained: int = 0) -> Case:
        was = self._was
        return Case(
            id=was.id,
            tier=was.tier,
            prompt_tokens=was.prompt_tokens,
            decision="refused" if was.decision == "refused" else "admitted",
            reason=was.reason,
            arrived_s=was.arrived_s,
            predicted_ttft_s=was.predicted_ttft_s,
            promised_ttft_s=was.ttft_s,
            promised_tpot_s=was.tpot_s,
            is_false=is_false,
            met=mine.met,
            ttft_s=mine.measured_ttft_s,
            tpot_s=mine.measured_tpot_s,
            lost=lost,
            gained=gained,
            retry_after_s=was.retry_after_s,
        )


def _over_s(outcome: Outcome) -> float:
    """When it was over. Of one that was dropped, that is not known: at the latest when its first token was due."""
    if outcome.finished_s is not None:
        return outcome.finished_s
    return outcome.arrived_s + (outcome.ttft_s or 0.0)


def _retried(
    make: Callable[[DoorMaker], Simulation], outcomes: Sequence[Outcome], cases: dict[int, Case], tell: Progress
) -> list[Case]:
    """The cases, with what came of those who were told to come again, and did."""
    again = []
    for at, case in cases.items():
        decided_s = outcomes[at].decided_s
        if case.decision == "refused" and case.retry_after_s is not None and decided_s is not None:
            again.append((decided_s + case.retry_after_s, at))
    run = make(Door) if again else None
    for done, (at_s, at) in enumerate(sorted(again)):
        assert run is not None
        run.run_until(at_s)
        cases[at] = msgspec.structs.replace(cases[at], retry=_come_again(run.fork(), cases[at].id))
        tell((1 + done) / len(again))
    return list(cases.values())


def _come_again(fork: Simulation, request: str) -> str:
    place = len(fork.outcomes)
    fork.come_again(request)
    fork.run_until(fork.now)
    while len(fork.outcomes) <= place or fork.is_live(request):
        fork.run_until(nextafter(fork.now, inf) if len(fork.outcomes) <= place else fork.now + _LOOK_EVERY_S)
    outcome = fork.outcomes[place]
    if outcome.decision in ("admitted", "shed"):
        return "met" if outcome.met else "missed"
    return outcome.decision
