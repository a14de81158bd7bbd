"""A scheduler and a device whose steps last whole columns.

In one column the device computes one token of every row of the step: a step lasts as many columns as its largest
prefill has tokens, and 1 without any. Decodes run in its first column and are stalled in the others; that is the hole
that chunked prefill closes.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.config import SchedulerConfig
from policies.events import Event, Finished
from policies.scheduler import Scheduler
from policies.step_time import StepTimeModel
from policies.vocabulary import (
    BLOCK_SIZE,
    Request,
    Sampling,
    Step,
    StepDone,
    StepTimeCoefficients,
    WorkerSpec,
    pack_tokens,
)
from simulator.textbook.workload import StepRequest, StepWorkload

__all__ = ["Instance", "make_request"]

_STEP_TIME = StepTimeCoefficients(1.0, 0.0, 0.0)


@dataclass
class _Slot:
    request: str
    prompt: int
    known: int  # tokens, the sampled ones included
    computed: int


def make_request(name: str, number: int, request: StepRequest) -> Request:
    """As a scheduler takes it: its prefill samples an output, and each decode column one more. Its prompt is like that
    of no other, so that nothing is shared."""
    return Request(name, 1, "", "", "", pack_tokens([number + 1] * request.prefill), request.decode + 1, Sampling())


class Instance:
    """Runs one real `Scheduler` with one step in flight, and draws what its rows do.

    `marks` has the columns of each request: (column, mark), in order.
    """

    def __init__(self, workload: StepWorkload, *, slots: int, config: SchedulerConfig) -> None:
        requests = workload.workload.values()
        longest = max(request.prefill + request.decode + 1 for request in requests)
        blocks = (longest // BLOCK_SIZE + 2) * (len(requests) + slots)  # room for all: nobody is preempted
        tokens = sum(request.prefill for request in requests) + slots
        spec = WorkerSpec("", "steps", blocks, blocks, 1, slots, tokens, longest, 1.0, _STEP_TIME)
        self.core = Scheduler(spec, config=config, step_time=StepTimeModel(_STEP_TIME))
        self.ends_at = 0  # the column after the last of the step that runs
        self.marks: dict[str, list[tuple[int, str]]] = {}
        self._step: Step | None = None
        self._slots: dict[int, _Slot] = {}

    @property
    def running(self) -> bool:
        """Whether a step runs."""
        return self._step is not None

    def complete(self, column: int) -> list[Event]:
        """The step that ends before this column is over, if there is one."""
        if self._step is None or self.ends_at > column:
            return []
        step, self._step = self._step, None
        sampled = []
        for number in step.slots:
            slot = self._slots[number]
            if slot.computed == slot.known:
                slot.known += 1
                sampled.append(number)
        nothing = [0] * len(sampled)
        events = self.core.complete(StepDone(step.number, sampled, nothing, nothing, 0.0), float(column))
        for event in events:
            if isinstance(event, Finished):
                self._leave(event.request)
        return events

    def hand_over(self, request: str, column: int) -> Request | None:
        """Take a request out, with its outputs so far; its KV stays until `core.abandon`. None: it is over."""
        self._leave(request)
        return self.core.hand_over(request, float(column), keep=True)

    def begin(self, column: int) -> None:
        """Plan and start a step, unless one runs or there is nothing to do."""
        if self._step is not None or (step := self.core.plan(float(column))) is None:
            return
        for new in step.new:
            known = len(new.tokens) // 4
            self._slots[new.slot] = _Slot(new.request, new.prompt_tokens, known, new.computed)
        given = dict(zip(step.slots, step.counts, strict=True))
        columns = max(given.values(), default=1)
        for number, slot in self._slots.items():
            count = given.get(number, 0)
            mark = "P" if slot.computed < slot.prompt else "d"
            slot.computed += count
            self._draw(slot.request, column, mark * count + "#" * (columns - count))
        self._step, self.ends_at = step, column + columns

    def _leave(self, request: str) -> None:
        for number in [number for number, slot in self._slots.items() if slot.request == request]:
            del self._slots[number]

    def _draw(self, request: str, column: int, marks: str) -> None:
        self.marks.setdefault(request, []).extend(enumerate(marks, column))
