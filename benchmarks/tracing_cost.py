"""What tracing costs: requests/s and CPU of a whole stack with tracing off, at 5 % and at 100 %.

    python -m benchmarks.tracing_cost                  # some 5 minutes
    python -m benchmarks.tracing_cost --rounds 5

Three stacks (`headgate serve` on the mock device) stand beside each other, and are asked in turns: a round is one
measurement of each, in an order that changes from round to round, so that what else goes on on the machine hits all
alike. All of a stack's processes have core 0, the client core 1. A ratio is taken inside a round, and the median over
the rounds is what counts.

- `off`: OTEL_SDK_DISABLED=true: no span is made, nothing is held;
- `5 %`: --sample-ratio 0.05; of the rest the facts are held, in case the request turns out to matter;
- `100 %`: --sample-ratio 1: every span of every request, to the embedded store.

Since all processes of a stack share a core, requests/s is one over their CPU time a request. That is told too, and
where Linux's `perf` may count them, their instructions in user space: a busy neighbour changes both less than
requests/s, and the last hardly at all. Spans of a measurement are stored up to half a second after its end; that time
is counted with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Self

from benchmarks._machine import machine
from benchmarks._sides import Headgate, pin
from benchmarks.control_plane import drive, plan_for, summary

RESULTS = Path(__file__).resolve().parent / "results" / "tracing_cost.json"
GOAL_LOSS = 0.02
SIDES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "off": ((), {"OTEL_SDK_DISABLED": "true"}),
    "5 %": (("--sample-ratio", "0.05"), {}),
    "100 %": (("--sample-ratio", "1"), {}),
}
#: So long after a span's end it is stored.
_STORED_S = 0.7
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(stack: Headgate) -> float:
    """CPU time of all processes of a stack so far, user and system."""
    ticks = 0
    for pid in stack.pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_S


class Instructions:
    """Those that processes retire in user space while the context is open. None where they cannot be counted."""

    def __init__(self, pids: list[int], out: Path) -> None:
        self._pids = pids
        self._out = out
        self._perf: subprocess.Popen[bytes] | None = None
        self.counted: float | None = None

    def __enter__(self) -> Self:
        if shutil.which("perf") is not None:
            command = ["perf", "stat", "-x", ",", "-e", "instructions:u", "-o", str(self._out)]
            self._perf = subprocess.Popen(
                [*command, "-p", ",".join(map(str, self._pids))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(0.3)  # it attaches to every thread
        return self

    def __exit__(self, *raised: object) -> None:
        if self._perf is not None:
            self._perf.send_signal(signal.SIGINT)
            self._perf.wait(10)
            lines = self._out.read_text().splitlines() if self._out.exists() else []
            counts = [line.partition(",")[0] for line in lines if "instructions" in line]
            if counts and counts[0].isdigit():
                self.counted = float(counts[0])


def measure_once(stack: Headgate, *, requests: int, server: int, client: int) -> dict[str, float]:
    """One measurement of one stack."""
    pin(stack.pids, (server,))
    plan = replace(plan_for(stack, stream=True, cpus=(client,)), requests=requests)
    with tempfile.TemporaryDirectory() as scratch, Instructions(stack.pids, Path(scratch) / "perf") as instructions:
        before = cpu_s(stack)
        found = summary(drive(plan))
        time.sleep(_STORED_S)
        spent = cpu_s(stack) - before
    count = requests + plan.warm_up
    figures = {
        "requests_per_s": found["requests_per_s"],
        "first_p50_ms": found["first_p50_ms"],
        "cpu_ms_per_request": 1000 * spent / count,
    }
    if instructions.counted is not None:
        figures["kilo_instructions_per_request"] = instructions.counted / count / 1000
    return figures


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All rounds."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    rounds: list[dict[str, dict[str, float]]] = []
    with ExitStack() as exits:
        stacks = {
            name: exits.enter_context(
                Headgate(
                    scratch / name.replace(" %", ""),
                    step_ms=options.step_ms,
                    options=arguments,
                    environment=environment,
                )
            )
            for name, (arguments, environment) in SIDES.items()
        }
        for name, stack in stacks.items():
            measure_once(stack, requests=options.requests, server=cores[0], client=cores[1])
            print(f"  {name:6} warm", flush=True)
        for number in range(options.rounds):
            order = list(SIDES)[number % 3 :] + list(SIDES)[: number % 3]
            found = {
                name: measure_once(stacks[name], requests=options.requests, server=cores[0], client=cores[1])
                for name in order
            }
            rounds.append({name: found[name] for name in SIDES})
            print("  " + "".join(f"{name:>8}{found[name]['requests_per_s']:8.1f}/s" for name in SIDES), flush=True)
    return {
        "machine": machine("headgate", "opentelemetry-sdk", "uvicorn", "nats-py"),
        "load": {"requests_a_measurement": options.requests, "device_step_ms": options.step_ms},
        "load_average_at_end": os.getloadavg(),
        "sides": {
            name: {figure: median(one[name][figure] for one in rounds) for figure in rounds[0][name]} for name in SIDES
        },
        "ratio_to_off": {
            name: {
                figure: _ratios([one[name][figure] / one["off"][figure] for one in rounds])
                for figure in rounds[0][name]
                if figure != "first_p50_ms"
            }
            for name in SIDES
            if name != "off"
        },
        "rounds": rounds,
    }


def _ratios(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def report(results: dict[str, Any]) -> str:
    """The tables."""
    lines = ["          requests/s   first token p50, ms   CPU, ms a request"]
    for name, side in results["sides"].items():
        lines.append(
            f"  {name:6}{side['requests_per_s']:12.1f}{side['first_p50_ms']:22.1f}{side['cpu_ms_per_request']:20.3f}"
        )
    for name, ratios in results["ratio_to_off"].items():
        for figure, ratio in ratios.items():
            spread = f"({ratio['least']:.3f} - {ratio['most']:.3f})"
            lines.append(f"  {name} to off, {figure}: {ratio['median']:.3f} {spread}")
    for what, loss in losses(results).items():
        lines.append(f"{what}: {loss:.1%} (goal {GOAL_LOSS:.0%}): {'ok' if loss <= GOAL_LOSS else 'MISSED'}")
    return "\n".join(lines)


def losses(results: dict[str, Any]) -> dict[str, float]:
    """What 5 % cost: in requests/s, and by the instructions that a request takes, from which the requests/s of a
    machine that does nothing else would follow."""
    ratios = results["ratio_to_off"]["5 %"]
    found = {"fewer requests/s at 5 %": 1 - ratios["requests_per_s"]["median"]}
    if "kilo_instructions_per_request" in ratios:
        found["the same, by instructions"] = 1 - 1 / ratios["kilo_instructions_per_request"]["median"]
    return found


def main() -> int:
    """Print the tables and write the results; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=600, help="of one measurement (default 600)")
    parser.add_argument("--step-ms", type=float, default=2.0, help="of the mock device (default 2)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headgate-tracing-") as scratch:
        results = measure(options, Path(scratch))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))
    return int(any(loss > GOAL_LOSS for loss in losses(results).values()))


if __name__ == "__main__":
    sys.exit(main())
