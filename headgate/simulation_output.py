"""What simulations leave behind beside tables: outcomes as CSV, and pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from simulator.metrics import Metrics
from simulator.records import Outcome, Result, Workload

__all__ = ["draw_run", "draw_sweep", "folder_name", "write_outcomes"]

_COMPUTED = ("measured_ttft_s", "measured_tpot_s", "met")


def write_outcomes(path: Path, results: Sequence[Result]) -> None:
    """A row for each request of each run."""
    fields = ["policy", "load", "seed", *Outcome.__struct_fields__, *_COMPUTED]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        for result in results:
            for outcome in result.outcomes:
                row = [getattr(outcome, field) for field in fields[3:]]
                writer.writerow([result.policy, result.load, result.seed, *row])


def draw_run(folder: Path, result: Result, workload: Workload, *, blocks: int) -> list[Path]:
    """The pictures of one run, which kept its steps.

    :raises SimulatorError: matplotlib is not installed.
    """
    # Imported here: matplotlib is an extra, and slow to load.
    from simulator.plots.gantt import gantt
    from simulator.plots.style import save
    from simulator.plots.timeline import composition, service, state_over_time

    weights = {name: tenant.contract.weight for name, tenant in workload.tenants.items()}
    busiest_s = _busiest(result.outcomes)
    pages = {
        "gantt": gantt(result.steps_kept, result.outcomes, from_s=busiest_s),
        "state": state_over_time(result.steps_kept, blocks=blocks, workers=result.workers),
        "steps": composition(result.steps_kept),
        "service": service(result.outcomes, weights, ended_s=result.ended_s),
    }
    return [save(page, folder / f"{name}.png") for name, page in pages.items()]


def draw_sweep(path: Path, runs: Sequence[Metrics]) -> Path:
    """Attainment and goodput of the policies over the loads.

    :raises SimulatorError: matplotlib is not installed.
    """
    # Imported here: matplotlib is an extra, and slow to load.
    from simulator.experiment.pictures import policy_curves
    from simulator.plots.curves import load_curves
    from simulator.plots.style import save

    loads: dict[float, dict[str, dict[int, Metrics]]] = {}
    for run in runs:
        loads.setdefault(run.load, {}).setdefault(run.policy, {})[run.seed] = run
    title = f"{runs[0].workload} · {runs[0].workers} x {runs[0].device}"
    return save(load_curves(policy_curves(loads), title=title, x="load (x the trace)"), path)


def folder_name(parts: Sequence[object]) -> str:
    """Of what tells runs apart, as part of a path."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", "-".join(map(str, parts))).strip("-")


def _busiest(outcomes: Sequence[Outcome], *, window: int = 40) -> float:
    """Where a chart of so many requests shows the most: the arrival after which they wait the longest for a token."""
    if len(outcomes) <= window:
        return 0.0
    waits = [(o.measured_ttft_s or 0.0) + 5.0 * (o.preemptions > 0) for o in outcomes]
    total = best = sum(waits[:window])
    at = 0
    for i in range(window, len(waits)):
        total += waits[i] - waits[i - window]
        if total > best:
            best, at = total, i - window + 1
    return outcomes[at].arrived_s
