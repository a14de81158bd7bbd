"""What planning costs: `plan` + `complete` of the scheduler core for a steady batch, and its parts.

    python benchmarks/scheduler_core.py [--rows 256] [--steps 2000] [--out results/scheduler_core.json]

The batch decodes with two steps in flight. Every row crosses a block every 16 tokens; in `churn`, each row that ends
is replaced by a new request of 512 prompt tokens, in outputs of about 200. Targets: 250 µs a step at 256 rows, 1 µs for
each continuing row (the slope between 64 and 256 rows).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

from policies.config import SchedulerConfig
from policies.scheduler import Scheduler
from policies.step_time import Features, Ratios, step_time
from policies.vocabulary import (
    Finish,
    Request,
    Sampling,
    Step,
    StepDone,
    StepTimeCoefficients,
    WorkerSpec,
    pack_tokens,
)

COEFFICIENTS = StepTimeCoefficients(0.004, 0.003, 0.00002)


class FixedStepTime:
    """A model that does not learn: its refit is measured apart."""

    coefficients = COEFFICIENTS

    def predict(self, tokens: float, attended: float, context: float, rows: float) -> float:
        return step_time(COEFFICIENTS, tokens, attended, context, rows)

    def observe(self, features: Features, actual_s: float) -> None:
        pass

    def ratios(self) -> Ratios:
        return Ratios(1.0, 1.1, 1.2)


class Batch:
    """A scheduler and a worker that answers at once."""

    def __init__(self, rows: int, *, outputs: int, prompt: int) -> None:
        spec = WorkerSpec("m", "mock", 400_000, 0, 1 << 20, rows, 8192, 1 << 20, 2e10, COEFFICIENTS)
        self.core = Scheduler(spec, config=SchedulerConfig(single_flight_tokens=1 << 20), step_time=FixedStepTime())
        self.prompt = prompt
        self.outputs = outputs
        self.serial = 0
        self.left = [0] * rows  # by slot, at the worker
        self.ended: list[int] = []
        for _ in range(rows):
            self.submit(prompt)

    def submit(self, prompt: int) -> None:
        self.serial += 1
        outputs = self.outputs // 2 + self.serial * 7919 % self.outputs  # spread around `outputs`
        tokens = pack_tokens([self.serial, *range(prompt - 1)])
        self.core.submit(Request(str(self.serial), 1, "t", "m", "g", tokens, outputs, Sampling()), 0.0)

    def execute(self, step: Step) -> StepDone:
        for new in step.new:
            self.left[new.slot] = new.max_tokens
        finished = []
        for slot in step.slots:
            self.left[slot] -= 1
            finished.append(int(Finish.length) if self.left[slot] == 0 else 0)
        return StepDone(step.number, step.slots, [7] * len(step.slots), finished, 0.005)


def measure(rows: int, steps: int, *, outputs: int, prompt: int, replace: bool) -> dict[str, float]:
    """Microseconds a step: medians and the 99th percentile, after the batch is in its steady state."""
    batch = Batch(rows, outputs=outputs, prompt=prompt)
    core, pending = batch.core, []
    plans, completes = [], []
    clock = time.perf_counter
    warm_up = 20 + 2 * rows * prompt // 8192
    gc.collect()
    gc.freeze()
    for i in range(steps + warm_up):
        start = clock()
        step = core.plan(i * 0.005)
        planned = clock()
        assert step is not None
        pending.append(batch.execute(step) if len(step.counts) == sum(step.counts) else chunked(batch, step))
        if len(pending) < 2:
            continue
        done = pending.pop(0)
        middle = clock()
        core.complete(done, i * 0.005)
        end = clock()
        if replace:
            for finish in done.finished:
                if finish:
                    batch.submit(prompt)
        if i >= warm_up:
            plans.append((planned - start) * 1e6)
            completes.append((end - middle) * 1e6)
    both = sorted(a + b for a, b in zip(plans, completes, strict=True))
    return {
        "plan_us": statistics.median(plans),
        "complete_us": statistics.median(completes),
        "both_us": statistics.median(both),
        "both_mean_us": statistics.fmean(both),
        "both_p99_us": both[int(len(both) * 0.99)],
    }


def chunked(batch: Batch, step: Step) -> StepDone:
    """A step with prompts in it: only a row whose prompt ends samples."""
    flight = batch.core._flights[-1]
    samples = [True] * flight.decodes + flight.samples
    for new in step.new:
        batch.left[new.slot] = new.max_tokens
    slots = [slot for slot, sample in zip(step.slots, samples, strict=True) if sample]
    finished = []
    for slot in slots:
        batch.left[slot] -= 1
        finished.append(int(Finish.length) if batch.left[slot] == 0 else 0)
    return StepDone(step.number, slots, [7] * len(slots), finished, 0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name, rows, outputs, replace in (
        ("decode, a quarter of the rows", options.rows // 4, 1 << 18, False),
        ("decode", options.rows, 1 << 18, False),
        ("churn", options.rows, 200, True),
    ):
        results[name] = measure(rows, options.steps, outputs=outputs, prompt=512, replace=replace)
        figures = "  ".join(f"{key} {value:7.1f}" for key, value in results[name].items())
        print(f"{name:30} {rows:4} rows  {figures}")
    few, many = results["decode, a quarter of the rows"], results["decode"]
    slope = (many["both_us"] - few["both_us"]) / (options.rows - options.rows // 4)
    print(f"each continuing row: {slope:.3f} µs")
    if options.out is not None:
        options.out.write_text(json.dumps({"rows": options.rows, "us_per_row": slope, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
