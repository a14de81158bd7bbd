"""Our simulation beside another one, simdistserve (of DistServe, OSDI 2024), on the same requests.

    python benchmarks/simdistserve.py --simdistserve CHECKOUT --trace azure2023_conv.csv [--python VENV/bin/python]

CHECKOUT holds its package `simdistserve`; it runs as it is, by an interpreter that has simpy, numpy and pandas. Both
get the first 4,000 requests of the trace with prompt + output below 2,048 tokens, their gaps scaled to 1, 2 and 4
requests/s, and OPT-13B on A100s by the same published coefficients. Printed are quantiles of time to first token (TTFT)
and of time per output token (TPOT), the ratio of ours to theirs request by request, attainment, and the speed of both.

Its rules, read from its sources, times in ms, S the tokens of a prefill batch, B the rows and C the context of a decode
batch (after its step), and how our side is set to the same:

- A step of prompts takes 18.10 + 0.1019 S + 7.122e-6 Σ length², plus 1 (a constant per pipeline stage), plus a dispatch
  of 2 + 1e-4 S. A step of decodes takes 19.93 + 6.269e-4 C + 0.0385 B below 95 rows, 7.17 + 5.798e-4 C + 0.1583 B from
  there, plus a dispatch of 2 + 1e-4 (C - B). Ours: the devices `opt-13b-a100-prefill` and `-decode` with these
  constants added. Our form has one set of coefficients and a floor: the small batch is the floor, the large one the
  line above it. They cross at 107 rows instead of switching at 95, and per context that of small batches is taken.
- A prefill worker takes all prompts that wait, whole, in order of arrival, until 66,144 tokens. Memory has no limit, at
  either worker. Ours: `disaggregated` (FCFS, whole prompts), as many tokens a step, unlimited pools.
- KV is there at once. Ours: links of 1e15 bytes/s, under a microsecond for any request here.
- Its outputs are those after the prefill: a request of n outputs does n decode steps, and TPOT divides by n. With us
  the prefill gives the first output, so ours have n + 1, and both divide by n.
- A decode step takes rows from the head of a queue until 50,000 tokens of context are in it; they go to its tail after
  the step, so beyond 50,000 tokens rows take turns. Ours runs all that are there. This is the one rule that is not the
  same: at 1 request/s it never binds, at 2 it binds in bursts, at 4 always. With it lifted in a copy of theirs, 99.85 %
  of the TPOTs at 2 requests/s are within 1 % of ours; at 4, with hundreds of rows, ours are 1.3 times as long for the
  8 % of the context's coefficient, which overload adds up, and within 1 % on average with that of large batches.
- Its next step is planned when the last one is over. Ours: one step in flight instead of two.

The mixed worker ("vllm" there) runs a step of prompts whenever one waits, and decodes stand still meanwhile. Beside it
stands our `chunked` on one worker with the memory of an A100, by its coefficients of that engine, joined to one set:
the prefill line is the line, the decode constant the floor, and rows above the floor cost what a prompt's token does,
which is more than there. It is a sanity check of another policy, not of the same one: at 2 requests/s one worker is at
its limit by either's coefficients (29 % of the time for prompts, 70 % for decodes at 50 rows); theirs, without a limit
of memory, then makes tokens late (TPOT), ours first tokens (TTFT).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean, quantiles
from typing import NamedTuple

import msgspec
from _machine import machine

from policies.catalog import PolicySet, policy_set
from policies.vocabulary import StepTimeCoefficients
from simulator.device import SimulatedDevice
from simulator.devices import load_device
from simulator.disaggregated import DisaggregatedSimulation
from simulator.records import Arrival, Device, Result, Workload
from simulator.simulation import Simulation
from simulator.workload import load_trace

TTFT_S, TPOT_S = 1.0, 0.1
MOST_TOKENS = 2048
PREFILL_TOKENS = 66_144
UNLIMITED_BLOCKS = 1_000_000


class Times(NamedTuple):
    """Of every request, in the order of the workload, in seconds; and of the whole."""

    ttft: list[float]
    tpot: list[float]
    requests_per_s: float  # simulated, without starting the interpreter where that can be told apart

    def attained(self) -> float:
        """Percent of the requests with TTFT <= 1 s and TPOT <= 100 ms."""
        return 100 * fmean(a <= TTFT_S and b <= TPOT_S for a, b in zip(self.ttft, self.tpot, strict=True))


def requests(trace: Path, count: int, rate: float) -> Workload:
    """The first `count` short requests, at `rate` a second on average."""
    whole = load_trace(trace, skip_empty=True)
    kept = [each for each in whole.arrivals if each.prompt_tokens + each.output_tokens < MOST_TOKENS][:count]
    first, factor = kept[0].at_s, (len(kept) / (kept[-1].at_s - kept[0].at_s)) / rate
    arrivals = [
        Arrival(
            each.id, (each.at_s - first) * factor, each.tenant, each.prompt_tokens, each.output_tokens + 1, MOST_TOKENS
        )
        for each in kept
    ]
    return Workload(name=f"{trace.stem}-{rate:g}", arrivals=arrivals, tenants=whole.tenants)


def theirs(options: argparse.Namespace, workload: Workload, backend: str) -> Times:
    """What simdistserve says."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "workload.json"), Path(folder, "latency.csv")
        rows = [
            {"start_time": each.at_s, "prompt_len": each.prompt_tokens, "output_len": each.output_tokens - 1}
            for each in workload.arrivals
        ]
        given.write_text(json.dumps(rows))
        began = time.perf_counter()
        arguments = ["--backend", backend, "--model", "facebook/opt-13b", "--N", str(len(rows)), "--arrival", "custom"]
        arguments += ["--workload", str(given), "--output-request-latency", str(made)]
        subprocess.run(
            [options.python, "-W", "ignore", "-m", "simdistserve.benchmarks.simulate_dist", *arguments],
            cwd=options.simdistserve,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        took = time.perf_counter() - began
        with made.open() as file:
            found = list(csv.DictReader(file))
    ttft = [float(row["first_token_latency"]) / 1000 for row in found]
    return Times(ttft, [float(row["tpot"]) / 1000 for row in found], len(rows) / took)


def with_dispatch(device: Device, *, step_s: float, per_token_s: float) -> Device:
    """The device with what a step of theirs costs beside computing, for the kind of steps that it does."""
    c = device.step_time
    prefills = c.per_attended_s > 0
    changed = msgspec.structs.replace(
        c,
        floor_s=c.floor_s + step_s,
        base_s=c.base_s + step_s,
        per_token_s=c.per_token_s + per_token_s * prefills,
        per_context_s=c.per_context_s + per_token_s * (not prefills),
        per_row_s=c.per_row_s - per_token_s * (not prefills),
    )
    return msgspec.structs.replace(
        device,
        blocks=UNLIMITED_BLOCKS,
        slots=PREFILL_TOKENS,
        tokens_per_step=PREFILL_TOKENS,
        transfer_bytes_per_s=1e15,
        step_time=changed,
    )


class _TwoDevices(DisaggregatedSimulation):
    """One worker of each kind, each with the step times of its kind; they are alike otherwise."""

    def __init__(self, workload: Workload, prefill: Device, decode: Device, policies: PolicySet) -> None:
        super().__init__(workload, prefill, policies, workers=2)
        worker = self._fleet.workers[1]
        worker.device = SimulatedDevice(decode, self._true, noise=worker.device.noise, random=Random(0))


def ours_disaggregated(workload: Workload) -> Times:
    """One prefill worker and one decode worker, by their rules."""
    policies = policy_set("disaggregated")
    scheduler = msgspec.structs.replace(policies.scheduler, steps_in_flight=1, watermark=0.0, prefix_cache=False)
    policies = msgspec.structs.replace(policies, scheduler=scheduler)
    prefill = with_dispatch(load_device("opt-13b-a100-prefill"), step_s=3e-3, per_token_s=1e-7)
    decode = with_dispatch(load_device("opt-13b-a100-decode"), step_s=2e-3, per_token_s=1e-7)
    return _timed(_TwoDevices(workload, prefill, decode, policies))


def ours_mixed(workload: Workload) -> Times:
    """One worker, chunked prefills, by the coefficients of the engine of their mixed worker."""
    step_time = StepTimeCoefficients(
        floor_s=23.475e-3 + 2e-3,
        base_s=22.052e-3 + 3e-3,
        per_token_s=0.14051e-3 + 1e-7,
        per_attended_s=2 * 8.0766e-9,
        per_context_s=5.9293e-7 + 1e-7,
    )
    device = msgspec.structs.replace(load_device("opt-13b-a100"), step_time=step_time)
    return _timed(Simulation(workload, device, policy_set("chunked")))


def _timed(simulation: Simulation) -> Times:
    result: Result = simulation.run()
    ttft = [each.measured_ttft_s for each in result.outcomes]
    tpot = [each.measured_tpot_s for each in result.outcomes]
    return Times(
        [each for each in ttft if each is not None],
        [each for each in tpot if each is not None],
        len(result.outcomes) / result.wall_s,
    )


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "mean": fmean(values)}


def compared(mine: Times, peer: Times) -> dict[str, object]:
    """Figures of both, and of the ratios of single requests."""
    both = {"ttft": (mine.ttft, peer.ttft), "tpot": (mine.tpot, peer.tpot)}
    found: dict[str, object] = {
        name: {
            "ours_s": _quantiles(a),
            "theirs_s": _quantiles(b),
            "ratio": _quantiles([x / y for x, y in zip(a, b, strict=True)]),
        }
        for name, (a, b) in both.items()
    }
    for name, times in (("ours", mine), ("theirs", peer)):
        found[name] = {"attained_percent": times.attained(), "requests_per_s": times.requests_per_s}
    return found


def _print(title: str, figures: dict[str, object]) -> None:
    sides = " | ".join(
        f"{name} {figures[name]['attained_percent']:.1f} % attained, {figures[name]['requests_per_s']:,.0f} requests/s"  # type: ignore[index]
        for name in ("ours", "theirs")
    )
    print(f"{title}: {sides}")
    for name in ("ttft", "tpot"):
        rows: dict[str, dict[str, float]] = figures[name]  # type: ignore[assignment]
        for side, scale, unit in (("ours_s", 1000, " ms"), ("theirs_s", 1000, " ms"), ("ratio", 1, "")):
            print(f"  {name} {side:9}" + "".join(f"{q:>6} {rows[side][q] * scale:9.3f}{unit}" for q in rows[side]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Our simulation beside simdistserve.")
    parser.add_argument("--simdistserve", type=Path, required=True, help="directory that holds its package")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="interpreter with simpy, numpy and pandas")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--only", choices=["disaggregated", "mixed"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, object] = {"machine": machine(), "requests": options.requests}
    for rate in options.rates:
        workload = requests(options.trace, options.requests, rate)
        for name, backend, run in (
            ("disaggregated 1 + 1", "distserve", ours_disaggregated),
            ("mixed, 1 worker", "vllm", ours_mixed),
        ):
            if options.only and not name.startswith(options.only):
                continue
            figures = compared(run(workload), theirs(options, workload, backend))
            found[f"{name}, {rate:g}/s"] = figures
            _print(f"{name}, {rate:g} requests/s", figures)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
