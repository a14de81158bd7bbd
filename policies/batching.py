"""Which rows may start in a step, and how much of a prompt a step takes: the batching of the literature.

All of them decode every running row first (`Planner`), and differ in three answers:

| batching | who may start | of a prompt, a step takes |
| --- | --- | --- |
| static | a full batch, when the last member of the one before is over | all |
| dynamic | as static, or fewer when the oldest has waited long enough | all |
| continuous | whoever finds a place, at every step | all, or it waits |
| chunked | as continuous | what decodes and the prompts before it leave of the budget |
| splitfuse | as continuous, a better ranked one even before partial prompts | the same |
| time-budgeted | as splitfuse | the largest chunk that keeps the tightest running pace |

`SchedulerConfig.max_chunk` bounds the piece of a row in a step under any of them, `batch_size` the rows at once.
"""

from __future__ import annotations

from math import inf

from policies.chunks import StepTime, largest_chunk, tightest_pace_s
from policies.config import SchedulerConfig
from policies.draft import Draft
from policies.order import WaitingQueue
from policies.running import Running
from policies.vocabulary import WorkerSpec

__all__ = ["Batching", "Chunked", "Gathered", "SplitFuse", "TimeBudgeted", "Whole", "batching"]


class Batching:
    """What the planner asks. `size` bounds the rows of a step, `hold` those that have slots (by default the same),
    `tokens` is the budget of a step, `max_chunk` bounds a row's piece of it."""

    #: Partial prompts go on before anybody starts. Otherwise both share one order.
    partial_first = True

    def __init__(self, *, size: int, tokens: int, max_chunk: int = 0, hold: int = 0) -> None:
        self.size = size
        self.hold = hold or size
        self.tokens = tokens
        self.max_chunk = max_chunk or tokens

    def begin(self, draft: Draft, running: Running, waiting: WaitingQueue, now: float) -> int:
        """Prompts are about to be put into a step, which has its decodes: how many rows may start in it, at most."""
        return max(0, self.hold - len(running))

    def chunk(self, draft: Draft, position: int, behind: int) -> int:
        """How many of the `behind` tokens from `position` on the step takes; 0: it cannot go on, or start, now."""
        raise NotImplementedError

    def end(self, started: int, *, more: bool) -> None:
        """Prompts were put into a step, and `started` rows began; `more`: others of the batch may follow next."""

    def wake_at(self, running: Running, waiting: WaitingQueue) -> float:
        """The instant from which rows may start that may not now, though nothing else happens; inf: never."""
        return inf


class Chunked(Batching):
    """Stall-free batching (Sarathi-Serve, OSDI 2024): decodes, then partial prompts, then new ones, in `tokens`.

    A prompt takes all that is left, so that at most one partial prompt is at the tail, unless `max_chunk` cuts shorter.
    """

    def chunk(self, draft: Draft, position: int, behind: int) -> int:
        return min(behind, draft.budget, self.max_chunk)


class SplitFuse(Chunked):
    """Dynamic SplitFuse (DeepSpeed-FastGen, 2024): every step is filled to exactly `tokens`, as long as there is work,
    with decodes and pieces of as many prompts as it takes. A prompt that ranks better goes before partial ones, which
    wait with what they have."""

    partial_first = False


class TimeBudgeted(Batching):
    """The largest chunk whose predicted step keeps the tightest running pace, but `least` in any case."""

    partial_first = False

    def __init__(
        self, step_time: StepTime, *, least: int, size: int, tokens: int, max_chunk: int = 0, hold: int = 0
    ) -> None:
        super().__init__(size=size, tokens=tokens, max_chunk=max_chunk, hold=hold)
        self._step_time = step_time
        self._least = least
        self._limit_s = inf

    def begin(self, draft: Draft, running: Running, waiting: WaitingQueue, now: float) -> int:
        # Not the running rows alone: who decodes its last token here has left these, and waits for it as well.
        rows = draft.rows if draft.decodes >= len(running.decoding) else [*draft.rows, *running.decoding]
        self._limit_s = tightest_pace_s(rows, self._step_time, now)
        return super().begin(draft, running, waiting, now)

    def chunk(self, draft: Draft, position: int, behind: int) -> int:
        most = min(behind, draft.budget, self.max_chunk)
        if self._limit_s == inf:
            return most
        return largest_chunk(
            self._step_time,
            limit_s=self._limit_s,
            tokens=draft.tokens,
            attended=draft.attended,
            context=draft.context,
            rows=len(draft.rows),
            position=position,
            most=most,
            least=max(0, self._least - draft.tokens + draft.decodes),
        )


class Whole(Batching):
    """Iteration-level batching (Orca, OSDI 2022): rows join and leave at every step, and a prompt is never split.

    One that does not fit beside the others of a step waits for the next. Only what the worker could not take in one
    step beside the decodes is cut: it would wait for all of them to end, or forever.
    """

    def chunk(self, draft: Draft, position: int, behind: int) -> int:
        wanted = min(behind, self.max_chunk)
        first = len(draft.rows) == draft.decodes
        return wanted if wanted <= draft.budget else draft.budget if first else 0


class Gathered(Whole):
    """Request-level batching: `size` requests start together, and the next batch when the last of them is over.

    Static (FasterTransformer): only a full batch starts. Dynamic (Triton, TorchServe): also fewer, when the oldest has
    waited for `timeout_s`, counted while the device is busy too. Prompts that together are more than the worker takes
    in a step follow in the next ones; who finds no room in the KV pool starts when those who did are over.
    """

    def __init__(self, *, size: int, tokens: int, max_chunk: int = 0, timeout_s: float = inf) -> None:
        super().__init__(size=size, tokens=tokens, max_chunk=max_chunk)
        self._timeout_s = timeout_s
        self._places = 0  # of the batch that is starting
        self._owed = 0  # places of it that had no room

    def begin(self, draft: Draft, running: Running, waiting: WaitingQueue, now: float) -> int:
        if not len(running):
            places, self._owed = self._owed or (self.size if self._ready(waiting, now) else 0), 0
            self._places = min(places, len(waiting))
        return self._places

    def _ready(self, waiting: WaitingQueue, now: float) -> bool:
        # Who was preempted has been in a batch already, and does not gather anew.
        full = len(waiting) >= self.size or waiting.returning
        return bool(full) or now >= waiting.oldest_since() + self._timeout_s

    def end(self, started: int, *, more: bool) -> None:
        left = self._places - started
        self._places, self._owed = (left, 0) if more else (0, left + self._owed)

    def wake_at(self, running: Running, waiting: WaitingQueue) -> float:
        return inf if len(running) else waiting.oldest_since() + self._timeout_s


def batching(config: SchedulerConfig, spec: WorkerSpec, step_time: StepTime, *, slots: int) -> Batching:
    """The batching that `config.batching` names, on a worker that runs at most `slots` rows."""
    kind, most, max_chunk = config.batching, spec.tokens_per_step, config.max_chunk
    size = min(config.batch_size or slots, slots)
    # Who may sit out steps holds a slot meanwhile.
    preemptive = config.order == "mlfq"
    hold = slots if preemptive else size
    if kind in ("chunked", "splitfuse"):
        tokens = min(config.chunk_tokens or most, most)
        size = min(size, tokens)  # so that every row of a step gets a token
        cls = Chunked if kind == "chunked" else SplitFuse
        return cls(size=size, tokens=tokens, max_chunk=max_chunk, hold=hold if preemptive else size)
    if kind == "time-budgeted":
        return TimeBudgeted(step_time, least=config.min_chunk, size=size, tokens=most, max_chunk=max_chunk, hold=hold)
    if kind == "continuous":
        return Whole(size=size, tokens=most, max_chunk=max_chunk, hold=hold)
    timeout_s = config.batch_timeout_s if kind == "dynamic" else inf
    return Gathered(size=size, tokens=most, max_chunk=max_chunk, timeout_s=timeout_s)
