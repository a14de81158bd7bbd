"""Fits the step-time form to measurements, for device files. Needs numpy; nothing that simulates does.

    python -m simulator.devices.fit MEASUREMENTS.csv --model llama2-70b --hardware h100-80gb --tensor-parallel 4

The CSV is that of the Splitwise measurements (ISCA'24): model, hardware, tensor_parallel, prompt_size, batch_size,
token_size, and the times prompt_time and token_time in ms. A line gives two steps: the prefill of the whole batch, and
one decode of it, halfway through its outputs.

The form has a maximum in it, so it is fitted by turns: which steps are at the floor, then non-negative least squares
on relative error for the coefficients, until no step changes sides; from several starts, the best is taken.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.step_time import Features, step_time
from policies.vocabulary import StepTimeCoefficients
from simulator.errors import BadTrace

__all__ = ["Fit", "Measured", "errors_of", "fit", "medians", "read_measurements"]

_Array = npt.NDArray[np.float64]
_COLUMNS = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
)


class Measured(NamedTuple):
    """A step and how long it took."""

    features: Features
    duration_s: float

    @property
    def decode(self) -> bool:
        """Not a prefill."""
        return self.features.context > 0


class Fit(NamedTuple):
    """Coefficients, and the mean absolute relative error over the steps that they were fitted to."""

    coefficients: StepTimeCoefficients
    mape: float


def read_measurements(
    path: str | Path, *, model: str, hardware: str, tensor_parallel: int, max_tokens: int = 16_384
) -> list[Measured]:
    """The steps of one configuration; prefills of more than `max_tokens` are left out.

    :raises BadTrace: a column is missing, a value is no number, or there is no such configuration.
    """
    steps: list[Measured] = []
    found: set[str] = set()
    with Path(path).open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise BadTrace(path, 1, f"column {', '.join(missing)} is missing; measurements have {', '.join(_COLUMNS)}")
        for line in table:
            found.add(f"{line['model']} {line['hardware']} {line['tensor_parallel']}")
            if (line["model"], line["hardware"]) != (model, hardware) or line["tensor_parallel"] != str(
                tensor_parallel
            ):
                continue
            try:
                prompt, rows, outputs = (int(float(line[name])) for name in _COLUMNS[3:6])
                prompt_s, token_s = float(line["prompt_time"]) / 1e3, float(line["token_time"]) / 1e3
            except ValueError as error:
                raise BadTrace(path, table.line_num, f"{error}; sizes and times are numbers") from None
            if rows * prompt <= max_tokens:
                steps.append(Measured(Features(rows * prompt, rows * prompt * prompt / 2, 0, rows), prompt_s))
            steps.append(Measured(Features(rows, 0.0, rows * (prompt + outputs // 2), rows), token_s))
    if not steps:
        raise BadTrace(
            path, None, f"no line for {model} {hardware} {tensor_parallel}; there are {', '.join(sorted(found))}"
        )
    return steps


def medians(steps: Iterable[Measured]) -> list[Measured]:
    """One step for each that was measured repeatedly, so that none weighs more for it."""
    same: dict[Features, list[float]] = defaultdict(list)
    for each in steps:
        same[each.features].append(each.duration_s)
    return [Measured(features, statistics.median(durations)) for features, durations in same.items()]


def fit(steps: Sequence[Measured], *, least_per_context_s: float = 0.0) -> Fit:
    """The coefficients of least squared relative error.

    :param least_per_context_s: what reading the KV of a token takes at the bandwidth of the memory. Batches of equal
        prompts hardly tell rows from context apart, and a fit that charges all to rows makes long contexts free.
    :param steps: at least one; both prefills and decodes, or the coefficients of what is not among them are 0.
    """
    tokens = np.array([each.features.tokens for each in steps], dtype=float)
    rest = np.array([each.features[1:] for each in steps], dtype=float)
    measured = np.array([each.duration_s for each in steps], dtype=float)
    best: Fit | None = None
    for start in sorted({float(np.quantile(tokens, level)) for level in np.linspace(0, 1, 21)}):
        found = _from_start(steps, tokens, rest, measured, at_floor=tokens <= start, least=least_per_context_s)
        if best is None or found.mape < best.mape:
            best = found
    assert best is not None
    return best


def _from_start(
    steps: Sequence[Measured],
    tokens: _Array,
    rest: _Array,
    measured: _Array,
    *,
    at_floor: npt.NDArray[np.bool_],
    least: float,
) -> Fit:
    floored = at_floor
    left = 1.0 - least * rest[:, 1] / measured  # for the others to explain
    fitted = StepTimeCoefficients(0.0, 0.0, 0.0)
    for _ in range(50):
        columns = np.column_stack([floored, ~floored, np.where(floored, 0.0, tokens), rest])
        floor, base, per_token, attended, context, row = _non_negative(columns / measured[:, None], left)
        fitted = StepTimeCoefficients(floor, base, per_token, attended, context + least, row)
        now = base + per_token * tokens < floor
        if (now == floored).all():
            break
        floored = now
    return Fit(fitted, errors_of(fitted, steps))


def _non_negative(matrix: _Array, target: _Array) -> list[float]:
    """Least squares of matrix · x = target with x ≥ 0: coordinate descent, exact enough after so many sweeps."""
    scale = np.sqrt((matrix**2).sum(axis=0))
    scale[scale == 0] = 1.0
    columns = matrix / scale
    gram, wanted = columns.T @ columns, columns.T @ target
    x = np.zeros(columns.shape[1])
    for _ in range(20_000):
        before = x.copy()
        for i in range(len(x)):
            if gram[i, i] > 0:
                x[i] = max(0.0, x[i] + (wanted[i] - gram[i] @ x) / gram[i, i])
        if np.abs(x - before).max() < 1e-12:
            break
    return [float(value) for value in x / scale]


def errors_of(coefficients: StepTimeCoefficients, steps: Iterable[Measured]) -> float:
    """Mean of |predicted / measured - 1|; nan without a step."""
    errors = [abs(step_time(coefficients, *each.features) / each.duration_s - 1) for each in steps]
    return math.fsum(errors) / len(errors) if errors else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the [step_time] table and its errors over all measured steps."""
    parser = argparse.ArgumentParser(description="Fit step times to measurements of prefills and decodes.")
    parser.add_argument("measurements", help="CSV with the columns " + ", ".join(_COLUMNS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--tensor-parallel", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, default=16_384, help="of a prefill; longer ones are left out")
    parser.add_argument("--least-per-context", type=float, default=0.0, help="seconds: KV bytes of a token / bandwidth")
    chosen = parser.parse_args(arguments)
    steps = read_measurements(
        chosen.measurements,
        model=chosen.model,
        hardware=chosen.hardware,
        tensor_parallel=chosen.tensor_parallel,
        max_tokens=chosen.max_tokens,
    )
    fitted = fit(medians(steps), least_per_context_s=chosen.least_per_context).coefficients
    prefills = [each for each in steps if not each.decode]
    decodes = [each for each in steps if each.decode]
    lines = [
        (
            f"# MAPE: prefill {errors_of(fitted, prefills):.1%} of {len(prefills)}, "
            f"decode {errors_of(fitted, decodes):.1%} of {len(decodes)}"
        ),
        "[step_time]",
        *(f"{name} = {getattr(fitted, name):.4g}" for name in fitted.__struct_fields__),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
