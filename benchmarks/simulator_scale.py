"""How a simulation grows with its fleet: 1,000 workers, 10,000 tenants and an hour of requests, on one core.

    python benchmarks/simulator_scale.py [--policies chunked,headgate] [--workers 1000] [--tenants 10000]
                                         [--requests 300000] [--out benchmarks/results/simulator_scale.json]

Arrivals are Poisson; prompts and outputs are lognormal, as in conversations; every tenant sends as much, and has one of
the default mix's contracts. Each policy also runs with a tenth of the workers at the same load of each: what is paid
for the size of the fleet is the difference for a request. Memory is the largest resident set of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections import Counter
from pathlib import Path

import msgspec
from _machine import machine

from policies.catalog import CATALOG, policy_set
from simulator.devices import load_device
from simulator.records import Workload
from simulator.simulation import Simulation
from simulator.workload import load_mix
from simulator.workload.lengths import Lognormal
from simulator.workload.synthetic import Synthetic, generate
from simulator.workload.tenants import MixedTenant, TenantMix


def tenants(count: int) -> TenantMix:
    """So many tenants, each with an equal share, and the contracts of the default mix in turn."""
    contracts = [each.tenant for each in load_mix("default").tenants.values() if each.share]
    names = [f"t{number:05}" for number in range(count)]
    return TenantMix(
        name="many",
        tenants={
            name: MixedTenant(tenant=msgspec.structs.replace(contracts[i % len(contracts)], name=name), share=1.0)
            for i, name in enumerate(names)
        },
    )


def workload(requests: int, *, tenants_: int, duration_s: float) -> Workload:
    """An hour of conversations."""
    spec = Synthetic(
        name="many",
        rate_rps=requests / duration_s,
        duration_s=duration_s,
        prompt=Lognormal(median=800, sigma=0.8, cap=8192),
        output=Lognormal(median=150, sigma=0.8, cap=1024),
    )
    return generate(spec, tenants=tenants(tenants_), seed=1)


def measure(policies: str, workers: int, tenants_: int, requests: int, duration_s: float) -> dict[str, object]:
    """One row of the table."""
    work = workload(requests, tenants_=tenants_, duration_s=duration_s)
    base_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    simulation = Simulation(work, load_device("llama2-70b-h100-tp4"), policy_set(policies), workers=workers)
    begun, cpu = time.perf_counter(), time.process_time()
    result = simulation.run()
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "policy": policies,
        "workers": workers,
        "tenants": len(work.tenants),
        "requests": len(work.arrivals),
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "requests_per_s": round(len(work.arrivals) / cpu_s),
        "steps": result.steps,
        "busy_share": round(result.busy_s / result.ended_s / workers, 3),
        "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "of_it_workload_mib": round(base_mib),
        "decisions": dict(Counter(outcome.decision for outcome in result.outcomes)),
        "met_share": round(sum(outcome.met for outcome in result.outcomes) / len(result.outcomes), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="chunked,headgate", help=f"of {', '.join(CATALOG)}")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--duration-s", type=float, default=3600.0)
    parser.add_argument("--whole-only", action="store_true", help="leave out the tenth")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    head = machine("msgspec")
    rows = []
    context = multiprocessing.get_context("spawn")
    for policies in options.policies.split(","):
        for part in (1,) if options.whole_only else (10, 1):
            sizes = (options.workers // part, options.tenants // part, options.requests // part)
            with context.Pool(1) as pool:  # a process of its own, for its memory
                row = pool.apply(measure, (policies, *sizes, options.duration_s))
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
