"""How fast the simulator is on one core, with skipping and step by step, and that both give the same.

    python benchmarks/simulator_speed.py TRACE [--device llama2-70b-h100-tp4] [--loads 0.1,0.5,1.0] [--out results/…]

TRACE is any that `load_trace` reads; the target, 5,000 simulated requests a second, is for azure2023_conv at load 1.
Time is that of the process, so that a busy machine counts less. A round is all loads, skipping and not, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import msgspec
from _machine import machine

from policies.catalog import CATALOG, policy_set
from simulator.devices import load_device
from simulator.records import Device, Result, Workload
from simulator.simulation import Simulation
from simulator.workload import load_trace


def timed(workload: Workload, device: Device, policies: str, load: float, *, skip: bool) -> tuple[float, Result]:
    """Seconds of processor time, and what came out."""
    simulation = Simulation(workload, device, policy_set(policies), load=load, skip=skip)
    begun = time.process_time()
    result = simulation.run()
    return time.process_time() - begun, msgspec.structs.replace(result, wall_s=0.0)


def forked_ms(workload: Workload, device: Device, policies: str, load: float, *, forks: int) -> tuple[float, int]:
    """The median time of a fork in the middle of the run, and how many requests are live there."""
    simulation = Simulation(workload, device, policy_set(policies), load=load)
    simulation.run_until(workload.duration_s / load / 2)
    live = sum(outcome.finished_s is None for outcome in simulation.result().outcomes)
    times = []
    for _ in range(forks):
        begun = time.perf_counter()
        simulation.fork()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3, live


def measure(workload: Workload, device: Device, policies: str, load: float, *, rounds: int) -> dict[str, object]:
    """One row of the table."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    results: dict[bool, Result] = {}
    for _ in range(rounds):
        for skip in (True, False):
            took, results[skip] = timed(workload, device, policies, load, skip=skip)
            seconds[skip].append(took)
    requests = len(workload.arrivals)
    skipping, stepping = (statistics.median(seconds[skip]) for skip in (True, False))
    fork, live = forked_ms(workload, device, policies, load, forks=15)
    return {
        "load": load,
        "requests": requests,
        "steps": results[True].steps,
        "busy_share": round(results[True].busy_s / results[True].ended_s, 3),
        "requests_per_s": round(requests / skipping),
        "requests_per_s_stepwise": round(requests / stepping),
        "ratio": round(stepping / skipping, 2),
        "us_per_step": round(skipping / results[True].steps * 1e6, 1),
        "us_per_step_stepwise": round(stepping / results[True].steps * 1e6, 1),
        "equal": results[True] == results[False],
        "fork_ms": round(fork, 2),
        "live_at_fork": live,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", default="llama2-70b-h100-tp4")
    parser.add_argument("--policy", default="chunked", choices=sorted(CATALOG))
    parser.add_argument("--loads", default="0.1,0.5,1.0")
    parser.add_argument("--limit", type=int, default=None, help="requests of the trace")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = load_device(options.device)
    workload = load_trace(options.trace, limit=options.limit)
    head = machine("msgspec")
    rows = []
    for load in map(float, options.loads.split(",")):
        row = measure(workload, device, options.policy, load, rounds=options.rounds)
        rows.append(row)
        print(f"{options.policy} on {device.name} at {load}x:", ", ".join(f"{k} {v}" for k, v in row.items()))
    if options.out:
        options.out.write_text(json.dumps({"machine": head, "policy": options.policy, "rows": rows}, indent=1) + "\n")
    if not all(row["equal"] for row in rows):
        raise SystemExit("skipping changed a result")


if __name__ == "__main__":
    main()
