"""A worker's device without a model: the protocol checked, the time modelled, the tokens a hash.

Steps take as long as their `StepTimeCoefficients` say, tokens depend on (seed, position) alone, so that a stream can be
checked wherever it ran and however often it was resumed. Needs neither torch nor numpy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.config import read_config
from gpu_worker.engine import Progress, SampledRows, StepResult
from gpu_worker.errors import EngineError, StepRefused
from gpu_worker.slots import Row, SlotTable, StepPlan
from policies.vocabulary import BLOCK_SIZE, Finish, Sampling, Step, StepDone, StepTimeCoefficients, WorkerSpec

__all__ = ["MOCK_STEP_TIME", "MockEngine", "constant_step_time", "mock_token"]

#: An 8-billion-parameter model on one large GPU, roughly.
MOCK_STEP_TIME = StepTimeCoefficients(
    floor_s=0.006, base_s=0.004, per_token_s=2.5e-5, per_attended_s=2e-9, per_context_s=2e-8, per_row_s=1e-5
)


def constant_step_time(step_s: float) -> StepTimeCoefficients:
    """Every step takes so long, whatever is in it: what others add can be told apart."""
    return StepTimeCoefficients(
        floor_s=step_s, base_s=0.0, per_token_s=0.0, per_attended_s=0.0, per_context_s=0.0, per_row_s=0.0
    )


_MASK = 0xFFFFFFFFFFFFFFFF


def mock_token(seed: int, position: int, vocab_size: int) -> int:
    """The token that the mock samples for `position` (prompt tokens count) of a request with this seed."""
    x = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return (x ^ (x >> 31)) % vocab_size


@dataclass(slots=True)
class _Launched:
    number: int
    rows: list[Row]
    due: float
    duration_s: float
    error: str = ""


class MockEngine:
    """See `gpu_worker.engine.Engine`.

    :param clock: seconds, monotonic.
    :param sleep: called with seconds; a test passes its own and the engine takes no real time.
    """

    asynchronous = True  # steps queue on the modelled device, as on a GPU

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        vocab_size: int = 32000,
        eos_ids: tuple[int, ...] = (),
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spec = spec
        self._vocab_size = vocab_size
        self._clock = clock
        self._sleep = sleep
        self._busy_until = 0.0
        self._launched: deque[_Launched] = deque()
        self._slots = SlotTable(
            slots=spec.slots,
            blocks=spec.blocks,
            host_blocks=spec.host_blocks,
            tokens_per_step=spec.tokens_per_step,
            max_context=spec.max_context,
            vocab_size=vocab_size,
            eos_ids=frozenset(eos_ids),
        )

    @classmethod
    def load(
        cls,
        directory: str | Path | None = None,
        *,
        model: str | None = None,
        blocks: int | None = None,
        host_blocks: int | None = None,
        slots: int = 64,
        tokens_per_step: int | None = None,
        max_context: int | None = None,
        step_time: StepTimeCoefficients | None = None,
        block_bytes: int | None = None,
        swap_bytes_per_s: float = 20e9,
        progress: Progress | None = None,
    ) -> MockEngine:
        """A mock of the model in `directory`, of which only config.json is read; without one, of a common shape.

        :param step_time: by default MOCK_STEP_TIME.
        :raises BadModelDirectory: config.json is missing or wrong.
        :raises UnsupportedModel: the engine could not run the model either.
        """
        config = read_config(Path(directory)) if directory is not None else None
        blocks = blocks or 4096
        context = min(max_context or (config.max_context if config else 4096), blocks * BLOCK_SIZE)
        elements = config.kv_elements_per_block(BLOCK_SIZE) if config else 32 * 2 * 8 * BLOCK_SIZE * 128
        spec = WorkerSpec(
            model=model or (Path(directory).resolve().name if directory is not None else "mock"),
            device="mock",
            blocks=blocks,
            host_blocks=blocks if host_blocks is None else host_blocks,
            block_bytes=block_bytes or elements * 2,
            slots=slots,
            tokens_per_step=tokens_per_step or 2048,
            max_context=context,
            swap_bytes_per_s=swap_bytes_per_s,
            step_time=step_time or MOCK_STEP_TIME,
        )
        if progress is not None:
            progress(1, 1)
        if config is None:
            return cls(spec)
        return cls(spec, vocab_size=config.vocab_size, eos_ids=config.eos_token_ids)

    def reset(self) -> None:
        """See `Engine.reset`."""
        self._launched.clear()
        self._slots.reset()
        self._busy_until = 0.0

    def close(self) -> None:
        """See `Engine.close`."""
        self.reset()

    def execute(self, step: Step) -> StepResult:
        """See `Engine.execute`."""
        return self.collect(self.launch(step))

    def launch(self, step: Step) -> _Launched:
        """See `Engine.launch`. The step begins when the one before it ends."""
        begins = max(self._clock(), self._busy_until)
        try:
            plan = self._slots.plan(step)
        except StepRefused as refusal:
            launched = _Launched(step.number, [], begins, 0.0, str(refusal))
        else:
            duration = self._duration(plan)
            self._slots.commit(plan)
            launched = _Launched(step.number, [r for r in plan.rows if r.samples], begins + duration, duration)
        self._busy_until = launched.due
        self._launched.append(launched)
        return launched

    def _duration(self, plan: StepPlan) -> float:
        c = self.spec.step_time
        moved = (len(plan.step.swap_out) + len(plan.step.swap_in)) * self.spec.block_bytes
        if not plan.rows:
            return moved / self.spec.swap_bytes_per_s
        attended = sum(r.count * (r.start + r.count / 2) for r in plan.rows if r.count > 1)
        context = sum(r.start + r.count for r in plan.rows if r.count == 1)
        dense = max(c.floor_s, c.base_s + c.per_token_s * sum(r.count for r in plan.rows))
        computing = c.per_attended_s * attended + c.per_context_s * context + c.per_row_s * len(plan.rows)
        # Copies run beside the computing; a step is as long as the longer of both.
        return max(dense + computing, moved / self.spec.swap_bytes_per_s)

    def is_done(self, handle: _Launched) -> bool:
        """See `Engine.is_done`."""
        return self._clock() >= handle.due

    def collect(self, handle: _Launched) -> StepResult:
        """See `Engine.collect`. Sleeps until the step's modelled end.

        :raises EngineError: `handle` is not the oldest launched step.
        """
        if not self._launched or self._launched[0] is not handle:
            raise EngineError(f"step {handle.number} is collected out of order, or for the second time")
        self._launched.popleft()
        left = handle.due - self._clock()
        if left > 0:
            self._sleep(left)
        out = SampledRows()
        for row in handle.rows:
            if not row.slot.finish:
                self._sample(row, out)
        done = StepDone(handle.number, out.slots, out.tokens, out.finished, handle.duration_s, handle.error)
        return StepResult(done, out)

    def _sample(self, row: Row, out: SampledRows) -> None:
        slot, sampling = row.slot, row.slot.sampling
        position = row.start + row.count
        token = mock_token(sampling.seed, position, self._vocab_size)
        finish: Finish = self._slots.finish(row, token)
        out.slots.append(slot.index)
        out.requests.append(slot.request)
        out.attempts.append(slot.attempt)
        out.gateways.append(slot.gateway)
        out.indices.append(position - slot.prompt_tokens)
        out.tokens.append(token)
        out.finished.append(int(finish))
        out.logprobs.append(self._logprobs(sampling, position, token))

    def _logprobs(self, sampling: Sampling, position: int, token: int) -> list[tuple[int, float]] | None:
        """The chosen token has one half, the others half of the one before."""
        if sampling.logprobs < 0:
            return None
        others = [mock_token(sampling.seed + 1 + i, position, self._vocab_size) for i in range(sampling.logprobs)]
        top = [token, *others][: sampling.logprobs]
        return [(token, -0.6931471805599453)] + [(t, -0.6931471805599453 * (i + 1)) for i, t in enumerate(top)]
