from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec
import pytest

import simulator.experiment.runner as runner
from simulator.experiment.anchor import NoCapacity, capacity
from simulator.experiment.cell import Cell, policies_of, workload_of
from simulator.experiment.grid import BadGrid, load_grid
from simulator.experiment.report import make_report, write_csv
from simulator.experiment.runner import CellFailed, anchors_of, run_cell, run_grid
from simulator.experiment.store import CellResult
from simulator.metrics import Metrics
from simulator.overrides import BadOverride, changed_policies

_GRID = """
baseline = "chunked"
[grid]
traces = ["small.csv"]
devices = ["mock"]
policies = ["chunked", {{ policy = "chunked", order = "edf" }}]
loads = [0.5, 1.0]
seeds = [0, 1]
{more}
"""


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    lines = ["arrival_s,prompt_tokens,output_tokens"]
    lines += [f"{i * 0.05:.3f},{50 + 37 * i % 400},{3 + i % 7}" for i in range(60)]
    (tmp_path / "small.csv").write_text("\n".join(lines) + "\n")
    return _write(tmp_path)


def _write(folder: Path, more: str = "") -> Path:
    file = folder / "grid.toml"
    file.write_text(_GRID.format(more=more))
    return file


def _cell(grid_file: Path, **parameters: Any) -> Cell:
    return Cell(**{"trace": str(grid_file.parent / "small.csv"), "device": "mock", "policy": "chunked", **parameters})


def test_a_grid_is_every_combination(grid_file: Path) -> None:
    """Changed policies are named after what was changed."""
    cells = load_grid(grid_file).cells
    assert len(cells) == 2 * 2 * 2
    assert {cell.name for cell in cells} == {"chunked", "chunked[order=edf]"}
    assert {(cell.load, cell.seed) for cell in cells} == {(0.5, 0), (0.5, 1), (1.0, 0), (1.0, 1)}
    assert all(Path(cell.trace).is_absolute() for cell in cells)
    assert policies_of(cells[1]).scheduler.order == "edf"


def test_traces_may_lie_in_a_folder_of_their_own(grid_file: Path, tmp_path: Path) -> None:
    """Beside the grid first; then in the folder that is given."""
    folder = tmp_path / "grids"
    folder.mkdir()
    elsewhere = _write(folder)
    cells = load_grid(elsewhere, traces=tmp_path).cells
    assert {cell.trace for cell in cells} == {str((tmp_path / "small.csv").resolve())}
    with pytest.raises(BadGrid, match="there is no file"):
        load_grid(elsewhere, traces=folder)


def test_a_grid_may_give_one_value_for_a_list(grid_file: Path) -> None:
    """A scalar is a list of one."""
    cells = load_grid(_write(grid_file.parent, "kv_scale = 0.5\nworkers = [1, 2]")).cells
    assert len(cells) == 16
    assert {cell.kv_scale for cell in cells} == {0.5}


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[grid]", "[gird]", "gird is not known"),
        ("seeds", "seed", "grid.seed is not known; there are traces"),
        ("[0.5, 1.0]", "[]", "grid.loads is empty"),
        ("[0.5, 1.0]", "[0.5, 0.5]", "grid.loads: 0.5 is listed twice"),
        ("[0.5, 1.0]", "[0.5, -1]", "grid.loads: -1: "),
        ("[0.5, 1.0]", '["fast"]', "grid.loads: 'fast': "),
        ('["small.csv"]', '["large.csv"]', "grid.traces: there is no file"),
        ('["mock"]', "[3]", "grid.devices: 3 is no path or name"),
        ('"chunked", {', '"chonked", {', "policy 'chonked' is not known; there are headgate"),
        ('order = "edf"', 'order = "efd"', r"Invalid enum value 'efd' - at `\$.scheduler.order`"),
        ('order = "edf"', 'ordre = "edf"', "there is no part 'ordre'"),
        ('policy = "chunked", ', "", "neither a name nor a table with `policy`"),
        ('baseline = "chunked"', 'baseline = "static"', "baseline: 'static' is not among grid.policies: chunked"),
        ("traces =", "# ", "grid.traces is missing"),
        ("[grid]", "[grid]\nuntil_s = 3\nfrom_s = 5", "grid.until_s: 3 is not after from_s 5"),
        ("[grid]", "[grid", "line 3"),
        ("[grid]", "[anchor]\nattainment = 2\n[grid]", r"anchor: Expected `float` <= 1.0 - at `\$.attainment`"),
        ("[grid]", '[anchor]\npolicy = "x"\n[grid]', "anchor.policy: 'x' is not known"),
    ],
)
def test_a_wrong_grid_is_refused_with_its_key(grid_file: Path, old: str, new: str, problem: str) -> None:
    """And with what would be right."""
    text = grid_file.read_text()
    assert old in text
    grid_file.write_text(text.replace(old, new, 1))
    with pytest.raises(BadGrid, match=problem):
        load_grid(grid_file)


def test_a_missing_grid_is_refused(tmp_path: Path) -> None:
    """With its path."""
    with pytest.raises(BadGrid, match=r"no\.toml: cannot be read: No such file"):
        load_grid(tmp_path / "no.toml")


def test_results_are_those_of_single_runs_whatever_the_processes(grid_file: Path, tmp_path: Path) -> None:
    """A process more or less changes nothing but the time."""
    grid = load_grid(grid_file)
    apart = run_grid(grid, tmp_path / "apart", jobs=2)
    here = run_grid(grid, tmp_path / "here", jobs=1)
    assert [_timeless(result.metrics) for result in apart] == [_timeless(result.metrics) for result in here]
    assert _timeless(here[0].metrics) == _timeless(run_cell(grid.cells[0]))
    assert here[0].metrics.contract.offered + here[0].metrics.free.offered == 60


def _timeless(metrics: Metrics) -> Metrics:
    return msgspec.structs.replace(metrics, wall_s=0.0)


def test_a_rerun_computes_only_what_is_missing(
    grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn file counts as missing."""
    grid = load_grid(grid_file)
    first = run_grid(grid, tmp_path)
    files = sorted((tmp_path / "cells").iterdir())
    assert len(files) == len(grid.cells)
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    ran: list[Cell] = []

    def counted(cell: Cell) -> Metrics:
        ran.append(cell)
        return run_cell(cell)

    monkeypatch.setattr(runner, "run_cell", counted)
    shown: list[tuple[int, int]] = []
    again = run_grid(grid, tmp_path, progress=lambda done, total: shown.append((done, total)))
    assert len(ran) == 2
    assert shown == [(6, 8), (7, 8), (8, 8)]
    assert [_timeless(result.metrics) for result in again] == [_timeless(result.metrics) for result in first]


def test_another_content_of_the_trace_is_another_cell(grid_file: Path) -> None:
    """A result is of what was in the files, not of their names."""
    cell = _cell(grid_file)
    other = grid_file.parent / "other"
    other.mkdir()
    trace = grid_file.parent / "small.csv"
    (other / "small.csv").write_text(trace.read_text() + "9.0,10,10\n")
    assert cell.digest() == _cell(grid_file).digest()
    assert cell.digest() != _cell(grid_file, seed=1).digest()
    assert cell.digest() != msgspec.structs.replace(cell, trace=str(other / "small.csv")).digest()


def test_a_cell_that_fails_does_not_stop_the_others(grid_file: Path, tmp_path: Path) -> None:
    """The error names it; what was done is kept."""
    grid = load_grid(_write(grid_file.parent, "from_s = [0, 1000]"))
    with pytest.raises(CellFailed, match=r"8 of 16 runs failed.*\n.*small\.csv, chunked, load 0\.5: .*no arrival"):
        run_grid(grid, tmp_path / "out")
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 8


def test_an_error_of_another_process_comes_back_whole(grid_file: Path, tmp_path: Path) -> None:
    """With the line of the trace that is wrong."""
    trace = grid_file.parent / "small.csv"
    trace.write_text(trace.read_text() + "9.0,-1,10\n")
    with pytest.raises(CellFailed, match=r"8 of 8 runs failed.*\n.*line 62: "):
        run_grid(load_grid(grid_file), tmp_path / "out", jobs=2)


def test_a_window_begins_at_zero(grid_file: Path) -> None:
    """Its arrivals are those between, moved to the beginning."""
    window = workload_of(_cell(grid_file, from_s=1.0, until_s=2.0))
    assert len(window.arrivals) == 20
    assert window.arrivals[0].at_s == pytest.approx(0.0)
    assert window.duration_s == pytest.approx(0.95)


def test_the_csv_has_a_row_a_run(grid_file: Path, tmp_path: Path) -> None:
    """Parameters, then figures."""
    grid = load_grid(grid_file)
    write_csv(run_grid(grid, tmp_path), tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {(row["cell_policy"], row["changes"]) for row in rows} == {("chunked", ""), ("chunked", "order=edf")}
    assert {(row["cell_trace"], row["cell_device"]) for row in rows} == {("small.csv", "mock")}
    assert all(int(row["contract_offered"]) + int(row["free_offered"]) == 60 for row in rows)
    assert all(0 <= float(row["contract_attainment_offered"]) <= 1 for row in rows)


def test_the_report_has_a_table_for_each_load_and_differences(grid_file: Path, tmp_path: Path) -> None:
    """Means over seeds, and paired differences to the baseline."""
    grid = load_grid(grid_file)
    text = make_report(grid, run_grid(grid, tmp_path))
    assert text.startswith("# grid\n\n8 runs; mean over 2 seeds (0, 1)")
    assert text.count("### Load") == 2
    assert text.count("| against `chunked`, paired |") == 2
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| `chunked` |")}
    assert len(widths) == 1


def test_loads_are_multiples_of_the_anchor(grid_file: Path, tmp_path: Path) -> None:
    """The capacity is found once, and kept."""
    _write(grid_file.parent, '[anchor]\npolicy = "chunked"\nattainment = 0.5')
    grid_file.write_text(grid_file.read_text().replace('"mock"', '"opt-13b-a100"'))
    grid = load_grid(grid_file)
    results = run_grid(grid, tmp_path)
    (anchor,) = anchors_of(grid, tmp_path)
    assert {(result.relative_load, result.cell.load) for result in results} == {
        (0.5, 0.5 * anchor["load"]),
        (1.0, anchor["load"]),
    }
    at = _cell(grid_file, load=anchor["load"], device="opt-13b-a100")
    assert (run_cell(at).contract.attainment_offered or 0) >= 0.5
    assert (run_cell(msgspec.structs.replace(at, load=1.1 * at.load)).contract.attainment_offered or 0) < 0.5
    assert "Load 1 is" in make_report(grid, results)


@pytest.mark.parametrize("border", [0.01, 0.7, 1.0, 3.3, 500.0])
def test_the_capacity_is_where_attainment_falls(border: float) -> None:
    """From below, to two percent."""
    found = capacity(lambda load: 1.0 if load <= border else 0.0)
    assert border / 1.021 <= found <= border


def test_without_a_border_there_is_no_capacity() -> None:
    """It says which way."""
    with pytest.raises(NoCapacity, match="kept even at 1024"):
        capacity(lambda load: 1.0)
    with pytest.raises(NoCapacity, match=r"not kept even at 0\.000976"):
        capacity(lambda load: 0.0)
    with pytest.raises(NoCapacity, match="no request has a contract"):
        capacity(lambda load: None)


def test_parts_of_policies_can_be_changed() -> None:
    """By the names of the fields; nothing else changes."""
    changed = changed_policies(
        "headgate", {"order": "vtc", "max_chunk": 256, "admission": "none", "admission.kv_reserve": 0.2}
    )
    assert changed.name == "headgate[order=vtc,max_chunk=256,admission=none,admission.kv_reserve=0.2]"
    assert (changed.scheduler.order, changed.scheduler.max_chunk) == ("vtc", 256)
    assert (changed.admission.kind, changed.admission.kv_reserve) == ("none", 0.2)
    assert changed.scheduler.preemption == changed_policies("headgate", {}).scheduler.preemption
    assert changed_policies("headgate", {"placement": "round-robin"}).placement == "round-robin"


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("nobody", {}, "policy 'nobody' is not known"),
        ("headgate", {"speed": 3}, "there is no part 'speed'; there are"),
        ("headgate", {"admission.speed": 3}, "there is no part 'admission.speed'"),
        ("headgate", {"max_chunk": "large"}, "Expected `int`, got `str`"),
        ("headgate", {"roles": "both"}, "Invalid enum value 'both'"),
    ],
)
def test_a_wrong_change_is_refused(name: str, changes: dict[str, Any], problem: str) -> None:
    """With what there is."""
    with pytest.raises(BadOverride, match=problem):
        changed_policies(name, changes)


def test_infinite_loads_are_none(grid_file: Path) -> None:
    """TOML has inf; a load is finite."""
    grid_file.write_text(grid_file.read_text().replace("[0.5, 1.0]", "[inf]"))
    with pytest.raises(BadGrid, match=r"grid\.loads: inf"):
        load_grid(grid_file)


def test_a_made_up_workload_is_a_trace_too(grid_file: Path, tmp_path: Path) -> None:
    """With the tenants that it names, unless the grid says otherwise."""
    (grid_file.parent / "made.toml").write_text(
        "rate_rps = 20\nduration_s = 2\n"
        '[prompt]\ndistribution = "constant"\ntokens = 50\n[output]\ndistribution = "constant"\ntokens = 5\n'
        "[tenants.acme]\nshare = 1.0\nttft_ms = 1000\n"
    )
    grid_file.write_text(grid_file.read_text().replace("small.csv", "made.toml"))
    results = run_grid(load_grid(grid_file), tmp_path / "out")
    assert [group.name for group in results[0].metrics.tenants] == ["acme"]
    assert results[0].metrics.contract.offered > 10
    assert "## made" in make_report(load_grid(grid_file), results)


def test_runs_of_a_grid_are_judged_where_it_asks_for_it(grid_file: Path) -> None:
    """Shares and their intervals are columns; the judged requests themselves are not kept."""
    cell = _cell(grid_file, policy="headgate", load=8.0, counterfactual=5)
    metrics = run_cell(cell)
    found = metrics.counterfactual
    assert found is not None
    assert (found.false_admissions.of, found.cases) == (min(5, found.admitted), [])
    assert metrics.most_met is not None
    assert metrics.contract.met <= metrics.most_met <= metrics.contract.offered
    out = grid_file.parent / "runs.csv"
    write_csv([CellResult(cell=cell, relative_load=8.0, metrics=metrics)], out)
    (row,) = _rows(out)
    assert float(row["false_admissions_low"]) <= float(row["false_admissions"]) <= float(row["false_admissions_high"])
    assert float(row["attainment_bound"]) == metrics.most_met / metrics.contract.offered


def test_whether_a_run_is_judged_is_no_reason_to_run_all_others_again(grid_file: Path) -> None:
    """A result that was not asked for judgements keeps its name; one that was has another."""
    plain = _cell(grid_file, changes={"order": "edf", "chunk_tokens": 64})
    swapped = _cell(grid_file, changes={"chunk_tokens": 64, "order": "edf"})
    assert plain.digest() == swapped.digest()
    assert plain.digest() != _cell(grid_file, changes={"order": "edf", "chunk_tokens": 64}, counterfactual=5).digest()


def test_policies_are_measured_against_one_that_knows_everything(grid_file: Path, tmp_path: Path) -> None:
    """Paired by all but the policy, in the table and in the report."""
    text = grid_file.read_text().replace('{ policy = "chunked", order = "edf" }', _CLAIRVOYANT)
    grid_file.write_text(text.replace("loads = [0.5, 1.0]", "loads = [8.0]"))
    grid = load_grid(grid_file)
    assert [cell.told for cell in grid.cells if cell.seed == 0] == ["history", "clairvoyant"]
    results = run_grid(grid, tmp_path / "out")
    write_csv(results, out := tmp_path / "runs.csv")
    rows = _rows(out)
    for result, row in zip(results, rows, strict=True):
        mine, best = (
            r.metrics.contract.attainment_offered
            for r in (result, next(r for r in results if r.cell.changes and r.cell.seed == result.cell.seed))
        )
        assert mine is not None
        assert best
        assert float(row["of_clairvoyant"]) == pytest.approx(mine / best)
    assert "of the clairvoyant's" in make_report(grid, results)


def test_knowledge_that_there_is_not_is_told(grid_file: Path) -> None:
    """Before anything runs."""
    grid_file.write_text(grid_file.read_text().replace('order = "edf"', 'knowledge = "everything"'))
    with pytest.raises(BadGrid, match="clairvoyant"):
        load_grid(grid_file)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


_CLAIRVOYANT = '{ policy = "headgate", knowledge = "clairvoyant" }'
