"""How fast is this device with this model? A short self-benchmark at load, for the scheduler to begin with.

It fits `StepTimeCoefficients` to a handful of steps; the scheduler refits them on what it sees. Sizes are chosen by the
clock, so that it takes well under a second for a small model and a few steps for a large one.
"""

from __future__ import annotations

import time

import msgspec
import torch

from gpu_worker.torch_engine import TorchEngine
from policies.vocabulary import BLOCK_SIZE, NewRow, Sampling, Step, StepTimeCoefficients, WorkerSpec, pack_tokens

__all__ = ["calibrate"]

_STEP_S = 0.12  # a prefill step of the benchmark takes about so long
_BYTES = 1 << 27  # of KV that it reads at most


def calibrate(engine: TorchEngine) -> WorkerSpec:
    """The engine's spec with measured coefficients. Leaves the engine reset, its first blocks written with zeros."""
    bench = _Bench(engine)
    coefficients = bench.coefficients()
    swap = bench.swap_bytes_per_s()
    engine.reset()
    return msgspec.structs.replace(engine.spec, step_time=coefficients, swap_bytes_per_s=swap)


class _Bench:
    """Times steps of rows with given contexts. Every step drops the rows of the one before."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine = engine
        self.number = 0
        self.rows = 0
        spec = engine.spec
        self.blocks = max(1, min(spec.blocks, _BYTES // spec.block_bytes))
        engine.pools.device_pool[: self.blocks].zero_()
        engine.reset()

    def time(self, rows: int, context: int, count: int, *, repeat: int = 1) -> float:
        """Seconds of a step of `rows` with `count` tokens each after `context` that are computed; the best of some."""
        return min(self._step(rows, context, count) for _ in range(repeat + 1))

    def _step(self, rows: int, context: int, count: int) -> float:
        self.number += 1
        sampling = Sampling(temperature=0.0)
        each = -(-(context + count) // BLOCK_SIZE)
        shared = list(range(context // BLOCK_SIZE))
        distinct = rows * each <= self.blocks
        new, following = [], len(shared)
        for slot in range(rows):
            if distinct:
                blocks = list(range(slot * each, (slot + 1) * each))
            else:  # a pool too small for that: contexts are shared
                blocks = shared + list(range(following, following + each - len(shared)))
                following += each - len(shared)
            tokens = pack_tokens([1] * (context + count))
            new.append(NewRow(slot, "", 1, "", tokens, context + count, 1, sampling, blocks, context))
        drop, self.rows = list(range(self.rows)), rows
        step = Step(self.number, drop, [], [], new, list(range(rows)), [count] * rows, [])
        done = self.engine.execute(step).done
        if done.error:
            raise AssertionError(f"self-benchmark: {done.error}")
        return done.duration_s

    def coefficients(self) -> StepTimeCoefficients:
        """Each from a pair of steps that differ in what it counts; none below zero."""
        spec = self.engine.spec
        room = min(self.blocks * BLOCK_SIZE, spec.max_context) - 2
        floor = self.time(1, 0, 1, repeat=3)
        large = self._chunk(min(room, spec.tokens_per_step))
        small = max(1, large // 2)
        t_small, t_large = self.time(1, 0, small), self.time(1, 0, large)
        behind = max(0, min(room - small, 8 * small) // BLOCK_SIZE * BLOCK_SIZE)
        per_attended = max(0.0, self.time(1, behind, small) - t_small) / (small * behind) if behind else 0.0
        curved = per_attended * (large**2 - small**2) / 2
        slope = (t_large - t_small - curved) / max(1, large - small)
        # On a busy machine the small chunk may take as long as the large one. What a step takes beside its tokens is at
        # most what it takes for one token, so the tokens cannot be cheaper than this; free ones would be planned with.
        dense = t_large - per_attended * large**2 / 2
        per_token = max(slope, (dense - floor) / large, 0.0)
        base = max(0.0, dense - per_token * large)
        rows = max(1, min(8, spec.slots, self.blocks, spec.tokens_per_step))
        context = max(0, min(room // rows, 512) // BLOCK_SIZE * BLOCK_SIZE - BLOCK_SIZE)
        t_rows = self.time(rows, 0, 1)
        far = self.time(rows, context, 1) if context else t_rows
        per_context = max(0.0, far - t_rows) / (rows * context) if context else 0.0
        per_row = max(0.0, t_rows - max(floor, base + per_token * rows)) / rows
        return StepTimeCoefficients(floor, base, per_token, per_attended, per_context, per_row)

    def _chunk(self, most: int) -> int:
        """Prompt tokens that take about `_STEP_S`."""
        tokens = min(most, 32)
        while tokens < most:
            seconds = self.time(1, 0, tokens, repeat=0)
            if seconds > _STEP_S / 3:
                break
            tokens = min(most, tokens * 4 if seconds < _STEP_S / 8 else tokens * 2)
        return max(2, tokens) if most > 1 else 1

    def swap_bytes_per_s(self) -> float:
        """Device to host, over a batch of blocks."""
        spec = self.engine.spec
        if not spec.host_blocks:
            return 0.0
        count = max(1, min(self.blocks, spec.host_blocks, (1 << 26) // spec.block_bytes))
        pairs = [(i, i) for i in range(count)]
        times = []
        for _ in range(3):
            began = time.perf_counter()
            self.engine.pools.swap(pairs, [])
            if self.engine.asynchronous:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        self.engine.pools.before_use(range(count))
        return count * spec.block_bytes / min(times)
