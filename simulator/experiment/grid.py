"""The file of a grid (TOML): every combination of what it lists is a run.

baseline = "chunked"            # what others are compared with; a policy of the grid

[grid]
traces = ["azure.csv"]          # or made-up ones (.toml); paths from the folder of this file, or from that of traces
loads = [0.5, 1.0, 1.5, 3.0]
policies = ["headgate", "chunked", { policy = "headgate", preemption = "swap" }]
seeds = [0, 1, 2, 3, 4]
# and, one value or a list: tenants, devices, workers, knowledge, step_noise, stragglers, length_noise, kv_scale,
# slo_scale, from_s, until_s; and counterfactual: so many refusals, and as many admissions, are judged in each run
# { policy = "headgate", knowledge = "clairvoyant" } among the policies is what the others are measured against

[anchor]                        # optional: loads are multiples of the capacity under this policy,
policy = "chunked"              # the largest load at which it keeps
attainment = 0.9                # so much of what is offered
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec

from policies.catalog import CATALOG
from simulator.errors import SimulatorError
from simulator.experiment.cell import Cell
from simulator.overrides import changed_policies

__all__ = ["Anchor", "BadGrid", "Grid", "load_grid"]


class BadGrid(SimulatorError):
    """A grid that cannot be run, with the key that is wrong."""


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a load of 1 is."""

    policy: str = "chunked"
    attainment: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    seed: int = 0


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a grid file, in the order in which they are made."""

    name: str
    baseline: str | None
    anchor: Anchor | None
    cells: list[Cell]  # loads are multiples of the anchor, where there is one


#: Keys of [grid] and the parameter that each lists.
_LISTS = {
    "traces": "trace",
    "tenants": "tenants",
    "devices": "device",
    "workers": "workers",
    "kv_scale": "kv_scale",
    "slo_scale": "slo_scale",
    "from_s": "from_s",
    "until_s": "until_s",
    "knowledge": "knowledge",
    "step_noise": "step_noise",
    "stragglers": "stragglers",
    "length_noise": "length_noise",
    "counterfactual": "counterfactual",
    "seeds": "seed",
    "loads": "load",
    "policies": "policy",
}
_NEEDED = ("traces", "devices", "policies")


def load_grid(path: str | Path, *, traces: str | Path | None = None) -> Grid:
    """Read a grid file. `traces`: a folder where traces are looked for that are not beside it.

    :raises BadGrid: if it cannot be read, or a key or a value in it is wrong.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadGrid(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadGrid(f"{path}: {error}") from error
    _known(path, "", tables, ("baseline", "grid", "anchor"))
    if not isinstance(lists := tables.get("grid"), dict):
        raise BadGrid(f"{path}: [grid] is missing; it lists {', '.join(_LISTS)}")
    cells = _cells(path, lists, (path.parent, *([] if traces is None else [Path(traces)])))
    baseline = tables.get("baseline")
    names = list(dict.fromkeys(cell.name for cell in cells))
    if baseline is not None and baseline not in names:
        raise BadGrid(f"{path}: baseline: {baseline!r} is not among grid.policies: {', '.join(names)}")
    return Grid(name=path.stem, baseline=baseline, anchor=_anchor(path, tables.get("anchor")), cells=cells)


def _cells(path: Path, lists: dict[str, Any], folders: Sequence[Path]) -> list[Cell]:
    _known(path, "grid.", lists, tuple(_LISTS))
    missing = [key for key in _NEEDED if key not in lists]
    if missing:
        raise BadGrid(f"{path}: grid.{missing[0]} is missing; a grid lists at least {', '.join(_NEEDED)}")
    keys = [key for key in _LISTS if key in lists]
    values = []
    for key in keys:
        given = lists[key] if isinstance(lists[key], list) else [lists[key]]
        if not given:
            raise BadGrid(f"{path}: grid.{key} is empty; at least one value is needed")
        for number, value in enumerate(given):
            if value in given[:number]:
                raise BadGrid(f"{path}: grid.{key}: {value!r} is listed twice")
        values.append([_parameters(path, key, value, folders) for value in given])
    return [_cell(path, parts) for parts in product(*values)]


def _parameters(path: Path, key: str, value: Any, folders: Sequence[Path]) -> dict[str, Any]:
    """What one value of a list says of a cell, checked by itself, so that an error names its key."""
    if key == "policies":
        parameters = _policy(path, value)
    elif key in ("traces", "tenants", "devices"):
        parameters = {_LISTS[key]: _located(path, key, value, folders)}
    else:
        parameters = {_LISTS[key]: value}
    try:
        msgspec.convert({"trace": "", "device": "", **parameters}, Cell)
    except msgspec.ValidationError as error:
        raise BadGrid(f"{path}: grid.{key}: {value!r}: {error}") from error
    return parameters


def _policy(path: Path, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        name, changes = value, {}
    elif isinstance(value, dict) and isinstance(value.get("policy"), str):
        name, changes = value["policy"], {key: part for key, part in value.items() if key != "policy"}
    else:
        raise BadGrid(
            f"{path}: grid.policies: {value!r} is neither a name nor a table with `policy` and changes; "
            f"policies are {', '.join(CATALOG)}"
        )
    try:
        changed_policies(name, changes)
    except SimulatorError as error:
        raise BadGrid(f"{path}: grid.policies: {error}") from error
    return {"policy": name, "changes": changes}


def _located(path: Path, key: str, value: Any, folders: Sequence[Path]) -> str:
    if not isinstance(value, str):
        raise BadGrid(f"{path}: grid.{key}: {value!r} is no path or name")
    files = [folder / value for folder in (folders if key == "traces" else folders[:1])]
    for file in files:
        if file.is_file():
            return str(file.resolve())
    if key == "traces":
        raise BadGrid(f"{path}: grid.traces: there is no file {' or '.join(map(str, files))}")
    return value


def _cell(path: Path, parts: tuple[dict[str, Any], ...]) -> Cell:
    parameters = {key: value for part in parts for key, value in part.items()}
    cell = msgspec.convert(parameters, Cell)
    if cell.until_s is not None and cell.until_s <= cell.from_s:
        raise BadGrid(f"{path}: grid.until_s: {cell.until_s:g} is not after from_s {cell.from_s:g}")
    return cell


def _anchor(path: Path, table: Any) -> Anchor | None:
    if table is None:
        return None
    try:
        anchor = msgspec.convert(table, Anchor)
    except msgspec.ValidationError as error:
        raise BadGrid(f"{path}: anchor: {error}") from error
    if anchor.policy not in CATALOG:
        raise BadGrid(f"{path}: anchor.policy: {anchor.policy!r} is not known; there are {', '.join(CATALOG)}")
    return anchor


def _known(path: Path, prefix: str, table: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in table:
        if key not in keys:
            raise BadGrid(f"{path}: {prefix}{key} is not known; there are {', '.join(keys)}")
