"""`headgate experiment`: a grid of simulations, in parallel processes, resumed where it stopped."""

from __future__ import annotations

import os
from pathlib import Path

import click

from headgate.client_options import json_option
from headgate.commands.simulate import readable
from headgate.output import emit, print_json, remark
from headgate.simulation_progress import Bar
from simulator.errors import SimulatorError
from simulator.experiment.grid import Grid, load_grid
from simulator.experiment.report import make_report, write_csv
from simulator.experiment.runner import anchors_of, run_grid
from simulator.experiment.store import CellResult

__all__ = ["command"]


@click.command(
    name="experiment",
    epilog="Example: headgate experiment grid.toml --out results (stopped and run again, it goes on where it was)",
)
@click.argument("grid", type=click.Path(dir_okay=False))
@click.option("--out", default="", help="Folder of the results. [default: beside the grid, named like it]")
@click.option("--traces", default="", help="Folder of the traces that are not beside the grid.")
@click.option(
    "--jobs", default=0, type=click.IntRange(0), help="Processes. [default: one for each core]", show_default=False
)
@click.option("--plot/--no-plot", default=True, show_default=True, help="Pictures, where matplotlib is installed.")
@click.option("--anchor", is_flag=True, help="Only find the loads that are 1 in this grid, and print them.")
@json_option
def command(grid: str, out: str, traces: str, jobs: int, plot: bool, anchor: bool, as_json: bool) -> None:
    """Run every combination of what GRID (TOML) lists, and sum up what came of it.

    \b
    Writes into --out:
      cells/      a result for each run; those that are there are not run again
      runs.csv    a row for each run
      report.md   means over seeds with 95 % intervals, and differences to the baseline
      *.png       attainment and goodput against load

    \b
    A grid:
      baseline = "chunked"
      [grid]
      traces = ["azure.csv"]
      devices = ["llama2-70b-h100-tp4"]
      policies = ["headgate", "chunked", { policy = "headgate", preemption = "swap" }]
      loads = [0.5, 1.0, 1.5, 3.0]
      seeds = [0, 1, 2, 3, 4]
      [anchor]                  # loads are multiples of the capacity under
      policy = "chunked"
    Further keys of [grid]: tenants, workers, knowledge, step_noise, stragglers, length_noise, kv_scale, slo_scale,
    from_s, until_s: a value or a list. counterfactual = N judges N refusals and N admissions of each run by forks
    (columns false_refusals, false_admissions and more). A policy { policy = "headgate", knowledge = "clairvoyant" } is
    what the attainments of the others are measured against (of_clairvoyant).
    """
    with readable():
        wanted = load_grid(grid, traces=traces or None)
        folder = Path(out) if out else Path(grid).with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        jobs = jobs or os.cpu_count() or 1
        with Bar() as bar:
            if anchor:
                anchors = anchors_of(wanted, folder, jobs=jobs)
            else:
                results = run_grid(
                    wanted,
                    folder,
                    jobs=jobs,
                    progress=lambda done, total: bar.show(done / max(1, total), f"{done} of {total} runs"),
                )
        if anchor:
            emit(anchors, columns=("trace", "tenants", "device", "workers", "slo_scale", "load"), as_json=as_json)
            return
        write_csv(results, folder / "runs.csv")
        report = make_report(wanted, results)
        (folder / "report.md").write_text(report, encoding="utf-8")
        for path in [folder / "runs.csv", folder / "report.md", *(_draw(wanted, results, folder) if plot else [])]:
            remark(f"wrote {path}")
        if as_json:
            print_json(results)
        else:
            click.echo(report, nl=False)


def _draw(grid: Grid, results: list[CellResult], folder: Path) -> list[Path]:
    try:
        # Imported here: matplotlib is an extra, and slow to load.
        from simulator.experiment.pictures import draw_curves
    except SimulatorError as error:
        remark(f"no pictures: {error}")
        return []
    return draw_curves(grid, results, folder)
