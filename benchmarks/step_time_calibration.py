"""Does the predicted P90 of a step mean what it says? On synthetic steps whose truth and noise are known.

Steps are made as serving makes them: episodes of load from idle to full, mostly decode alone, now and then a chunk of a
prompt that is alone or behind a long context (a prefix hit). The model begins with a seed that is 20 % off. Noise: none
but rounding, lognormal of 10 %, of 30 % with 1 % of stragglers at five times, a drift of 1 % a minute, and devices
whose chunks are noisier than their decodes or that slow down as KV fills. After the first 2,000 steps, the share of
steps at or below their predicted P90 is counted: in all, and by tokens, KV in use, rows (the load) and prefix hit. The
target is 90 ± 3 % everywhere. (Under rounding alone ratios differ by 0.1 %, so that being above 93 % means nothing.)

    python benchmarks/step_time_calibration.py [--steps 40000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import exp
from pathlib import Path
from typing import NamedTuple

from _machine import machine

from policies.step_time import Features, StepTimeModel, step_time
from policies.vocabulary import StepTimeCoefficients

TRUE = StepTimeCoefficients(0.010, 0.006, 4e-5, 1e-9, 5e-8, 2e-5)
SEED = StepTimeCoefficients(0.012, 0.005, 5e-5, 0.8e-9, 4e-8, 1e-5)
WARM_UP = 2000


class Made(NamedTuple):
    """A step, and the strata that it is in."""

    features: Features
    strata: tuple[str, ...]


def steps(seed: int, count: int) -> Iterator[Made]:
    """Episodes of 200 steps, in each of which about as many rows run."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 200 == 0:
            load, length = rng.choice((1, 4, 16, 64, 64)), rng.choice((150, 600, 2000))
        rows = max(1, round(load * rng.uniform(0.7, 1.0)))
        context = sum(round(length * rng.uniform(0.5, 1.5)) for _ in range(rows))
        chunk = rng.choice((32, 128, 256, 512, 1500)) if rng.random() < 0.15 else 0
        before = rng.choice((0, 0, 1024, 4096)) if chunk else 0
        tokens = rows + chunk
        strata = (
            "tokens "
            + ("<= 64" if tokens <= 64 else "<= 256" if tokens <= 256 else "<= 1024" if tokens <= 1024 else "more"),
            "KV " + ("low" if context < 4000 else "middle" if context < 30_000 else "high"),
            "rows " + ("1-4" if rows <= 4 else "5-32" if rows <= 32 else "more"),
            "prefix " + ("none" if not chunk else "missed" if not before else "hit"),
        )
        yield Made(Features(tokens, chunk * (before + chunk / 2), context, rows + (chunk > 0)), strata)


Noise = Callable[[random.Random, Features, float], float]

#: Factor on a step, by name: of the generator, the step, and minutes since the beginning.
NOISES: dict[str, Noise] = {
    "rounding": lambda rng, f, minutes: rng.uniform(0.999, 1.001),
    "lognormal 10 %": lambda rng, f, minutes: rng.lognormvariate(0, 0.1),
    "lognormal 30 %, 1 % at 5x": lambda rng, f, minutes: rng.lognormvariate(0, 0.3) * (5 if rng.random() < 0.01 else 1),
    "10 %, drift 1 %/min": lambda rng, f, minutes: rng.lognormvariate(0, 0.1) * (1 + 0.01 * minutes),
    "3 % decode, 20 % chunks": lambda rng, f, minutes: rng.lognormvariate(0, 0.2 if f.attended else 0.03),
    "up to 15 % slower as KV fills": lambda rng, f, minutes: (
        rng.lognormvariate(0, 0.05) * (1 + 0.15 / (1 + exp((30_000 - f.context) / 6000)))
    ),
}


class Report(NamedTuple):
    """Shares in percent."""

    pooled: float  # at or below the P90 by the ratios of all steps
    stratum: float  # at or below `predict_upper`
    p95: float
    bias: float  # mean of actual / predicted - 1
    worst: dict[str, float]  # of `predict_upper`, by stratum


def run(noise: Noise, *, count: int, seed: int) -> Report:
    """Coverage with one kind of noise."""
    rng, model = random.Random(seed), StepTimeModel(SEED)
    seconds, seen, pooled, upper, p95, bias = 0.0, 0, 0, 0, 0, 0.0
    hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for number, (features, strata) in enumerate(steps(seed + 1, count)):
        actual = step_time(TRUE, *features) * noise(rng, features, seconds / 60)
        seconds += actual
        if number >= WARM_UP:
            predicted, ratios = model.predict(*features), model.ratios()
            below = actual <= model.predict_upper(*features)
            seen += 1
            pooled += actual <= predicted * ratios.p90
            p95 += actual <= predicted * ratios.p95
            upper += below
            bias += actual / predicted - 1
            for stratum in strata:
                hits[stratum][0] += below
                hits[stratum][1] += 1
        model.observe(features, actual)
    by = {name: round(100 * below / of, 1) for name, (below, of) in sorted(hits.items())}
    return Report(100 * pooled / seen, 100 * upper / seen, 100 * p95 / seen, 100 * bias / seen, by)


def microseconds() -> float:
    """Of `observe` and `predict` together; the best of five thousands."""
    model, made = StepTimeModel(SEED), [step.features for step in steps(3, 1000)]
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for features in made:
            model.predict(*features)
            model.observe(features, 0.02)
        best = min(best, time.perf_counter() - began)
    return 1e6 * best / len(made)


def missed(name: str, report: Report) -> list[str]:
    """The shares outside 90 ± 3 %."""
    shares = {"in all": report.stratum, **report.worst}
    return [f"{name}, {stratum}: {share:.1f} %" for stratum, share in shares.items() if not 87 <= share <= 93]


def main() -> int:
    parser = argparse.ArgumentParser(description="Coverage of the predicted P90 of step times.")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {name: run(noise, count=options.steps, seed=7) for name, noise in NOISES.items()}
    for name, report in found.items():
        print(
            f"{name:30} pooled P90 {report.pooled:5.1f}  own P90 {report.stratum:5.1f}  P95 {report.p95:5.1f}"
            f"  bias {report.bias:+5.2f} %"
        )
        print("    " + "  ".join(f"{stratum} {share}" for stratum, share in report.worst.items()))
    cost = microseconds()
    print(f"observe + predict: {cost:.1f} µs")
    if options.json:
        figures = {name: report._asdict() for name, report in found.items()}
        options.json.write_text(json.dumps({"machine": machine(), "us": cost, "noise": figures}, indent=1) + "\n")
    misses = [miss for name, report in found.items() if name != "rounding" for miss in missed(name, report)]
    for miss in misses:
        print(f"MISSED 90 ± 3 %: {miss}")
    return bool(misses)


if __name__ == "__main__":
    sys.exit(main())
