"""`headgate simulate`: what would become of a workload, under one policy or several."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from rich.console import Console

from headgate.client_options import json_option
from headgate.commands.simulation_options import simulation_options
from headgate.errors import HeadgateError
from headgate.output import print_json, remark
from headgate.simulation_output import draw_run, draw_sweep, folder_name, write_outcomes
from headgate.simulation_progress import Bar
from policies.catalog import DEFAULT
from simulator.errors import SimulatorError
from simulator.experiment.cell import SYNTHETIC, Cell, device_of, policies_of, workload_of
from simulator.experiment.runner import measured
from simulator.metrics import Metrics
from simulator.records import Result, Workload
from simulator.tables import comparison, details
from simulator.textbook.schedules import make_schedule
from simulator.textbook.text import LEGEND, as_text
from simulator.textbook.workload import Schedule, Strategy, load_steps

__all__ = ["command", "readable"]

_STRATEGIES = get_args(Strategy)
_PIPE_WIDTH = 240


@click.command(
    name="simulate",
    epilog="Example: headgate simulate --trace azure.csv --policy headgate --policy chunked --load 1 --load 2, "
    "or a small one in whole steps: headgate simulate --workload textbook --policy continuous",
)
@simulation_options
@json_option
def command(
    trace: str | None,
    synthetic: str | None,
    workload: str | None,
    policy: tuple[str, ...],
    load: tuple[float, ...],
    changes: tuple[str, ...],
    transfer: int | None,
    counterfactual: int,
    csv_path: str | None,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run the real schedulers and the real admission on a virtual clock, and say what became of a workload.

    One run is shown in detail; several (policies times loads) as a line each.
    """
    given = [name for name in (trace, synthetic, workload) if name]
    if len(given) != 1:
        raise click.UsageError("give one of --trace, --synthetic and --workload")
    if synthetic and not synthetic.endswith(SYNTHETIC):
        raise click.UsageError(f"--synthetic {synthetic!r}: the name of a made-up workload ends in {SYNTHETIC}")
    with readable():
        if workload:
            _in_steps(workload, policy, transfer=transfer, plot=plot, as_json=as_json)
            return
        parts = _changes(changes, options)
        base = Cell(trace=given[0], counterfactual=counterfactual, **options)
        cells = [
            msgspec.structs.replace(base, policy=name, changes=parts, load=factor)
            for name in policy or (DEFAULT,)
            for factor in load or (1.0,)
        ]
        _simulate(cells, csv_path=csv_path, plot=plot, as_json=as_json)


@contextmanager
def readable() -> Iterator[None]:
    """What the simulator refuses, as an error of the command line."""
    try:
        yield
    except SimulatorError as error:
        raise HeadgateError(str(error)) from error
    except OSError as error:
        raise HeadgateError(f"{error.filename}: {error.strerror}") from error


def _changes(assignments: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The parts that were changed, taken out of the options."""
    names = ("batching", "order", "admission", "preemption", "placement")
    parts = {name: value for name in names if (value := options.pop(name)) is not None}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment!r}: expected PART=VALUE, such as chunk_tokens=512")
        try:
            parts[key] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            parts[key] = text
    return parts


def _simulate(cells: list[Cell], *, csv_path: str | None, plot: str | None, as_json: bool) -> None:
    for cell in cells:
        policies_of(cell)  # so that a wrong name is told before the first run, not after an hour
    workload = workload_of(cells[0])  # all on the same
    results: list[Result] = []
    metrics: list[Metrics] = []
    with Bar() as bar:
        for number, cell in enumerate(cells):
            text = f"{cell.name} at {cell.load:g}x"
            result, run = measured(
                cell,
                workload,
                keep_steps=plot is not None,
                progress=lambda share: bar.show((number + share) / len(cells), text),  # noqa: B023
            )
            metrics.append(run)
            if plot:
                _draw(Path(plot), cell, result, workload, alone=len(cells) == 1)
            result.steps_kept = []
            if csv_path:
                results.append(result)
    if csv_path:
        write_outcomes(Path(csv_path), results)
    if plot and len({cell.load for cell in cells}) > 1:
        _say(draw_sweep(Path(plot) / "loads.png", metrics))
    if as_json:
        print_json(metrics)
    else:
        _console().print(details(metrics[0]) if len(metrics) == 1 else comparison(metrics))


def _draw(folder: Path, cell: Cell, result: Result, workload: Workload, *, alone: bool) -> None:
    folder = folder if alone else folder / folder_name((cell.name, cell.load))
    for path in draw_run(folder, result, workload, blocks=device_of(cell).blocks):
        _say(path)


def _in_steps(path: str, names: tuple[str, ...], *, transfer: int | None, plot: str | None, as_json: bool) -> None:
    workload = load_steps(path)
    if transfer is not None:
        workload = msgspec.structs.replace(workload, transfer=transfer)
    for name in names:
        if name not in _STRATEGIES:
            raise click.UsageError(f"--policy {name!r} with --workload: there are {', '.join(_STRATEGIES)}")
    schedules: dict[str, Schedule] = {name: make_schedule(workload, name) for name in names or _STRATEGIES}  # type: ignore[arg-type]
    if plot:
        # Imported here: matplotlib is an extra, and slow to load.
        from simulator.plots.gantt import textbook_gantt
        from simulator.plots.style import save

        _say(
            save(textbook_gantt({name.capitalize(): one for name, one in schedules.items()}), Path(plot) / "steps.png")
        )
    if as_json:
        print_json(list(schedules.values()))
        return
    for name, schedule in schedules.items():
        click.echo(f"{name}, batch {schedule.batch}\n{as_text(schedule)}\n")
    click.echo(LEGEND)


def _say(path: Path) -> None:
    remark(f"wrote {path}")


def _console() -> Console:
    out = sys.stdout
    return Console(file=out, width=None if out.isatty() else _PIPE_WIDTH, highlight=False)
