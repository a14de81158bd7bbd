"""Runs the cells of a grid in parallel processes, and skips those whose result is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from simulator.counterfactual import judge
from simulator.door import Door, DoorMaker
from simulator.errors import SimulatorError
from simulator.experiment.anchor import capacity_of
from simulator.experiment.cell import Cell, device_of, simulation_of, workload_of
from simulator.experiment.grid import Anchor, Grid
from simulator.experiment.store import CellResult, Store
from simulator.fluid_bound import most_met
from simulator.metrics import Metrics, measure
from simulator.records import Result, Workload
from simulator.simulation import Simulation

__all__ = ["CellFailed", "Progress", "anchors_of", "measured", "run_cell", "run_grid"]

#: Told how many of how many runs are over.
Progress = Callable[[int, int], None]
_T = TypeVar("_T")


class CellFailed(SimulatorError):
    """Some cells of a grid could not be simulated; all others were."""


def run_cell(cell: Cell) -> Metrics:
    """Simulate one cell.

    :raises SimulatorError: if something in it is wrong.
    """
    run = measured(cell, workload_of(cell))[1]
    judged = run.counterfactual
    if judged is None:
        return run
    # A grid keeps the shares alone.
    return msgspec.structs.replace(run, counterfactual=msgspec.structs.replace(judged, cases=[]))


def measured(
    cell: Cell, workload: Workload, *, keep_steps: bool = False, progress: Callable[[float], None] | None = None
) -> tuple[Result, Metrics]:
    """Simulate one cell, on what `workload_of` gives, and judge it as it asks for.

    :raises SimulatorError: if something in it is wrong.
    """
    judged = None
    if cell.counterfactual:
        make = partial(_make, cell, workload, keep_steps)
        result, judged = judge(make, sample=cell.counterfactual, seed=cell.seed, progress=progress)
    else:
        result = _make(cell, workload, keep_steps, Door).run(progress)
    bound = most_met(workload, device_of(cell), workers=cell.workers, load=cell.load)
    run = measure(result, workload.tenants)
    return result, msgspec.structs.replace(run, most_met=bound, counterfactual=judged)


def _make(cell: Cell, workload: Workload, keep_steps: bool, door: DoorMaker) -> Simulation:
    return simulation_of(cell, workload=workload, keep_steps=keep_steps, door=door)


def run_grid(grid: Grid, folder: Path, *, jobs: int = 1, progress: Progress | None = None) -> list[CellResult]:
    """The results of all cells, in the order of the grid. Whatever is done is kept in `folder/cells` at once.

    :param jobs: processes; 1 runs in this one.
    :raises CellFailed: after all other cells are done, with the first reasons.
    """
    store = Store(folder / "cells")
    cells = grid.cells if grid.anchor is None else _anchored(grid.cells, grid.anchor, store, jobs)
    missing = [cell for cell in cells if store.get(cell) is None]
    done, total = len(cells) - len(missing), len(cells)
    report = progress or (lambda done, total: None)
    report(done, total)
    failures = []
    for number, metrics in _each(run_cell, missing, jobs):
        if isinstance(metrics, SimulatorError):
            failures.append((missing[number], metrics))
        else:
            store.put(missing[number], metrics)
        done += 1
        report(done, total)
    if failures:
        raise CellFailed(_failed(failures, total))
    results = []
    for asked, cell in zip(grid.cells, cells, strict=True):
        kept = store.get(cell)
        assert kept is not None
        results.append(CellResult(cell=cell, relative_load=asked.load, metrics=kept))
    return results


def anchors_of(grid: Grid, folder: Path, *, jobs: int = 1) -> list[dict[str, Any]]:
    """What each grid calls a load of 1: the parameters of each place, and `load`, a factor on the speed of its trace.

    Without an anchor in the grid, that of the default one.

    :raises CellFailed: if a capacity cannot be found.
    """
    anchor = grid.anchor or Anchor()
    places = {(place := _place(cell, anchor)).digest(): place for cell in grid.cells}
    loads = _capacities(places, anchor.attainment, Store(folder / "cells"), jobs)
    return [{**msgspec.structs.asdict(place), "load": loads[digest]} for digest, place in places.items()]


def _anchored(cells: Sequence[Cell], anchor: Anchor, store: Store, jobs: int) -> list[Cell]:
    """The cells with their loads as multiples of the capacity for what each runs on."""
    places = [_place(cell, anchor) for cell in cells]
    digests = [place.digest() for place in places]
    loads = _capacities(dict(zip(digests, places, strict=True)), anchor.attainment, store, jobs)
    return [
        msgspec.structs.replace(cell, load=cell.load * loads[digest])
        for cell, digest in zip(cells, digests, strict=True)
    ]


def _capacities(places: dict[str, Cell], attainment: float, store: Store, jobs: int) -> dict[str, float]:
    known = {digest: store.get_capacity(place, attainment) for digest, place in places.items()}
    missing = [digest for digest, load in known.items() if load is None]
    for number, load in _each(_Capacity(attainment), [places[digest] for digest in missing], jobs):
        if isinstance(load, SimulatorError):
            raise CellFailed(_failed([(places[missing[number]], load)], len(missing))) from load
        store.put_capacity(places[missing[number]], attainment, load)
        known[missing[number]] = load
    return {digest: load for digest, load in known.items() if load is not None}


def _place(cell: Cell, anchor: Anchor) -> Cell:
    """What a capacity is found for: the anchor's policy, without noise, on the cell's trace, tenants and devices."""
    return Cell(
        trace=cell.trace,
        tenants=cell.tenants,
        device=cell.device,
        workers=cell.workers,
        slo_scale=cell.slo_scale,
        from_s=cell.from_s,
        until_s=cell.until_s,
        policy=anchor.policy,
        seed=anchor.seed,
    )


class _Capacity:
    """`capacity_of` with its goal; a class, so that it can be sent to another process."""

    def __init__(self, attainment: float) -> None:
        self._attainment = attainment

    def __call__(self, cell: Cell) -> float:
        return capacity_of(cell, attainment=self._attainment)


def _each(
    function: Callable[[Cell], _T], cells: Sequence[Cell], jobs: int
) -> Iterator[tuple[int, _T | SimulatorError]]:
    """The number and the result of each cell, as they come. What cannot be simulated gives its error."""
    if jobs <= 1 or len(cells) <= 1:
        for number, cell in enumerate(cells):
            yield number, _attempt(function, cell)
        return
    # Spawned: a process that has threads must not be forked.
    with ProcessPoolExecutor(min(jobs, len(cells)), mp_context=get_context("spawn")) as pool:
        try:
            calls = {pool.submit(_attempt, function, cell): number for number, cell in enumerate(cells)}
            for call in as_completed(calls):
                yield calls[call], call.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _attempt(function: Callable[[Cell], _T], cell: Cell) -> _T | SimulatorError:
    try:
        return function(cell)
    except SimulatorError as error:
        return SimulatorError(str(error))  # errors with fields of their own do not survive the way between processes


def _failed(failures: Sequence[tuple[Cell, Exception]], total: int) -> str:
    lines = [f"{len(failures)} of {total} runs failed; the others are kept. The first of them:"]
    lines += [f"  {Path(cell.trace).name}, {cell.name}, load {cell.load:g}: {error}" for cell, error in failures[:3]]
    return "\n".join(lines)
