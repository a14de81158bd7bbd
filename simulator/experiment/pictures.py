"""The curves of a grid: attainment and goodput against load, one picture for each workload. Needs matplotlib."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from simulator.experiment.grid import Grid
from simulator.experiment.report import groups_of
from simulator.experiment.store import CellResult
from simulator.metrics import Metrics
from simulator.plots.curves import Curve, Panel, load_curves
from simulator.plots.style import save
from simulator.quantiles import bootstrap_mean

__all__ = ["draw_curves", "policy_curves"]


def draw_curves(grid: Grid, results: Sequence[CellResult], folder: Path) -> list[Path]:
    """Write the pictures of a grid into a folder. A grid of one load has none."""
    paths = []
    x = "load (x the trace)" if grid.anchor is None else f"load (x capacity of {grid.anchor.policy})"
    for place, loads in groups_of(results).items():
        if len(loads) < 2:
            continue
        page = load_curves(policy_curves(loads), title=" · ".join(place), x=x)
        name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(place)).strip("-")
        paths.append(save(page, folder / f"{name}.png"))
    return paths


def policy_curves(loads: Mapping[float, Mapping[str, Mapping[int, Metrics]]]) -> list[Panel]:
    """Panels from metrics by load, policy and seed."""
    return [
        Panel(
            "Attainment of the offered",
            "of in-contract requests",
            _curves(loads, lambda m: m.contract.attainment_offered),
            share=True,
        ),
        Panel(
            "Attainment of the admitted",
            "",
            _curves(loads, lambda m: m.contract.attainment_admitted),
            share=True,
            goal=0.99,
        ),
        Panel("Goodput", "met requests/s", _curves(loads, lambda m: m.goodput_rps)),
    ]


def _curves(
    loads: Mapping[float, Mapping[str, Mapping[int, Metrics]]], of: Callable[[Metrics], float | None]
) -> dict[str, Curve]:
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for load, policies in sorted(loads.items()):
        for name, runs in policies.items():
            values = [value for run in runs.values() if (value := of(run)) is not None]
            if values:
                points.setdefault(name, []).append((load, *bootstrap_mean(values)))
    return {name: Curve(*(list(column) for column in zip(*rows, strict=True))) for name, rows in points.items()}
