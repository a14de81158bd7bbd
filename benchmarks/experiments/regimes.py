"""Contracts of the admitted where something else binds than in the traces: slots, memory, long prompts, bursts.

    python -m benchmarks.experiments.regimes

Four tenants of four classes on a small device, `headgate` against `chunked` and `edf-drop`, at once, twice and four
times what the device can hold. Deterministic; two minutes on one core.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from benchmarks.experiments._runs import arguments, run, show, write
from policies.vocabulary import Contract, StepTimeCoefficients, Tenant
from simulator.plots.style import PALETTE, dress, figure
from simulator.records import Device, Outcome
from simulator.workload import generate
from simulator.workload.lengths import Lognormal, Uniform
from simulator.workload.synthetic import Burst, Synthetic
from simulator.workload.tenants import MixedTenant, TenantMix

__all__ = ["regimes"]

SEEDS = range(3)
DEVICE = Device(
    name="small",
    blocks=8000,
    host_blocks=4000,
    block_bytes=1 << 20,
    slots=16,
    tokens_per_step=512,
    max_context=2048,
    swap_bytes_per_s=20e9,
    step_time=StepTimeCoefficients(0.006, 0.006, 2e-5),
)
CONTRACTS = {
    "gold": Contract(tier="priority", ttft_ms=1000, tpot_ms=40),
    "silver": Contract(ttft_ms=3000, tpot_ms=60),
    "patient": Contract(ttft_ms=6000),
    "free": Contract(tier="flex", ttft_ms=30_000),
}
#: What binds; the device; the workload at about what it can hold, of which the loads are multiples.
REGIMES: tuple[tuple[str, Device, Synthetic], ...] = (
    (
        "slots",
        DEVICE,
        Synthetic(rate_rps=12, duration_s=40, prompt=Uniform(low=20, high=400), output=Uniform(low=100, high=320)),
    ),
    (
        "memory",
        msgspec.structs.replace(DEVICE, slots=64, blocks=400, host_blocks=200),
        Synthetic(rate_rps=12, duration_s=40, prompt=Uniform(low=100, high=600), output=Uniform(low=50, high=300)),
    ),
    (
        "memory, no host",
        msgspec.structs.replace(DEVICE, slots=64, blocks=400, host_blocks=0),
        Synthetic(rate_rps=12, duration_s=40, prompt=Uniform(low=100, high=600), output=Uniform(low=50, high=300)),
    ),
    (
        "long prompts",
        msgspec.structs.replace(DEVICE, slots=32),
        Synthetic(rate_rps=16, duration_s=40, prompt=Uniform(low=800, high=1800), output=Uniform(low=20, high=120)),
    ),
    (
        "short outputs",
        DEVICE,
        Synthetic(rate_rps=120, duration_s=40, prompt=Uniform(low=50, high=500), output=Uniform(low=1, high=6)),
    ),
    (
        "heavy tails",
        msgspec.structs.replace(DEVICE, slots=32),
        Synthetic(
            rate_rps=30,
            duration_s=40,
            prompt=Lognormal(median=120, sigma=1.2, cap=1700),
            output=Lognormal(median=60, sigma=1.1, cap=300),
        ),
    ),
    (
        "bursts",
        DEVICE,
        Synthetic(
            rate_rps=12,
            duration_s=40,
            prompt=Uniform(low=20, high=400),
            output=Uniform(low=50, high=200),
            bursts=(Burst(from_s=8, until_s=12, factor=4.0), Burst(from_s=24, until_s=26, factor=8.0)),
        ),
    ),
)
LOADS = (1.0, 2.0, 4.0)
POLICIES = ("headgate", "chunked", "edf-drop")


def regimes(_: Path | None) -> None:
    """Kept of the admitted, and of the offered, by what binds."""
    begun = time.perf_counter()
    mix = TenantMix(
        name="four classes",
        tenants={
            name: MixedTenant(tenant=Tenant(name=name, contract=contract), share=1.0)
            for name, contract in CONTRACTS.items()
        },
    )
    rows: list[dict[str, object]] = []
    for name, device, spec in REGIMES:
        for load in LOADS:
            row: dict[str, object] = {"binds": name, "load": load}
            for policy in POLICIES:
                promised: list[Outcome] = []
                for seed in SEEDS:
                    result = run(generate(spec, tenants=mix, seed=seed), device, policy, load=load, seed=seed)
                    promised += [o for o in result.outcomes if o.tenant != "free"]
                admitted = [o for o in promised if o.decision == "admitted"]
                if policy == "headgate":
                    row["admitted"] = len(admitted) / len(promised)
                    row["kept of these"] = sum(o.met for o in admitted) / len(admitted)
                row[f"{policy}: kept of the offered"] = sum(o.met for o in promised) / len(promised)
            rows.append(row)
    show("Contracts kept where something else binds", rows)
    page, grid = figure(3.2, columns=len(LOADS))
    for axes, load in zip(grid, LOADS, strict=True):
        part = [row for row in rows if row["load"] == load]
        for shift, policy, colour in zip((-0.27, 0.0, 0.27), POLICIES, PALETTE, strict=False):
            heights = [100 * float(str(row[f"{policy}: kept of the offered"])) for row in part]
            axes.bar([i + shift for i in range(len(part))], heights, width=0.25, color=colour, label=policy)
        names = [str(row["binds"]) for row in part]
        axes.set_xticks(range(len(part)), names, rotation=40, fontsize=7, ha="right", rotation_mode="anchor")
        axes.set_ylim(0, 103)
        dress(axes, title=f"load {load:g}", y="kept of the offered (%)" if load == LOADS[0] else "")
    grid[0].legend(fontsize=7, frameon=False, loc="lower left")
    write("regimes", rows, page, about="python -m benchmarks.experiments.regimes", begun=begun)


def main() -> None:
    """The command line."""
    assert __doc__ is not None
    arguments(__doc__, ["regimes"])
    regimes(None)


if __name__ == "__main__":
    main()
