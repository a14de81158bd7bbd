from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import headgate.simulation_progress as simulation_progress
from headgate.__main__ import main
from headgate.simulation_progress import Bar

_STEPS = Path(__file__).parents[1] / "simulator" / "data" / "table51.json"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="headgate")


def _json(*arguments: object) -> Any:
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    lines = ["arrival_s,tenant,prompt_tokens,output_tokens"]
    lines += [f"{i * 0.05:.3f},tenant{i % 3},{50 + 37 * i % 400},{3 + i % 7}" for i in range(60)]
    file = tmp_path / "small.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_one_run_is_shown_in_detail(trace: Path) -> None:
    """By class, tenant and prompt length."""
    result = _run("simulate", "--trace", trace, "--device", "mock", "--policy", "chunked")
    assert result.exit_code == 0, result.stderr
    for part in ("small · chunked · 1 x mock", "in contract", "tenant1", "prompt tokens", "goodput", "Jain index"):
        assert part in result.stdout


def test_several_runs_are_a_line_each(trace: Path) -> None:
    """Policies times loads."""
    arguments = ["--policy", "chunked", "--policy", "edf", "--load", "0.5", "--load", "2"]
    result = _run("simulate", "--trace", trace, "--device", "mock", *arguments)
    lines = [line.split()[:2] for line in result.stdout.splitlines()[2:]]
    assert lines == [["chunked", "0.5x"], ["chunked", "2x"], ["edf", "0.5x"], ["edf", "2x"]]


def test_json_has_every_figure(trace: Path) -> None:
    """A list, also of one run."""
    (run,) = _json("simulate", "--trace", trace, "--device", "mock", "--policy", "chunked", "--seed", 7)
    assert (run["workload"], run["policy"], run["seed"], run["workers"]) == ("small", "chunked", 7, 1)
    assert run["contract"]["offered"] + run["free"]["offered"] == 60
    assert {group["name"] for group in run["tenants"]} == {"tenant0", "tenant1", "tenant2"}


def test_parts_of_a_policy_are_changed_by_options(trace: Path) -> None:
    """By those for what is changed most, and --set for all others."""
    runs = _json(
        *("simulate", "--trace", trace, "--device", "mock", "--policy", "chunked", "--policy", "vtc"),
        *("--preemption", "swap", "--placement", "round-robin", "--set", "chunk_tokens=256"),
    )
    changes = "preemption=swap,placement=round-robin,chunk_tokens=256"
    assert [run["policy"] for run in runs] == [f"chunked[{changes}]", f"vtc[{changes}]"]


def test_outcomes_are_written_as_csv(trace: Path, tmp_path: Path) -> None:
    """A row for each request of each run."""
    file = tmp_path / "outcomes.csv"
    arguments = ["--policy", "chunked", "--load", "1", "--load", "2", "--csv", file]
    assert _run("simulate", "--trace", trace, "--device", "mock", *arguments).exit_code == 0
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 120
    assert {row["load"] for row in rows} == {"1.0", "2.0"}
    assert all(float(row["measured_ttft_s"]) > 0 for row in rows)


def test_plots_are_written(trace: Path, tmp_path: Path) -> None:
    """Those of each run, and over the loads."""
    pytest.importorskip("matplotlib")
    folder = tmp_path / "plots"
    arguments = ["--policy", "chunked", "--load", "1", "--load", "2", "--plot", folder]
    result = _run("simulate", "--trace", trace, "--device", "mock", *arguments)
    assert result.exit_code == 0, result.stderr
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    runs = ("chunked-1.0", "chunked-2.0")
    assert names == {"loads.png"} | {f"{r}/{n}.png" for r in runs for n in ("gantt", "state", "steps", "service")}


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "give one of --trace, --synthetic and --workload"),
        (["--trace", "{trace}", "--workload", "x"], 2, "give one of"),
        (["--trace", "none.csv"], 1, "none.csv"),
        (["--trace", "{trace}", "--policy", "nobody"], 1, "policy 'nobody' is not known; there are headgate"),
        (["--trace", "{trace}", "--device", "abacus"], 1, "abacus"),
        (["--trace", "{trace}", "--tenants", "nobody"], 1, "nobody"),
        (["--trace", "{trace}", "--set", "speed"], 2, "expected PART=VALUE"),
        (["--trace", "{trace}", "--set", "speed=3"], 1, "there is no part 'speed'"),
        (["--trace", "{trace}", "--from-s", "99"], 1, "window from 99.0 s"),
        (["--trace", "{trace}", "--load", "0"], 2, "0"),
        (["--workload", "none.json"], 1, "none.json: cannot be read"),
        (["--workload", str(_STEPS), "--policy", "headgate"], 2, "there are static, dynamic, continuous"),
    ],
)
def test_what_is_wrong_is_one_line(trace: Path, arguments: list[str], code: int, problem: str) -> None:
    """And never a traceback."""
    result = _run("simulate", *(argument.format(trace=trace) for argument in arguments))
    assert result.exit_code == code
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_a_workload_in_steps_is_drawn(tmp_path: Path) -> None:
    """As text with its legend, as JSON, and as a picture."""
    known = json.loads(_STEPS.read_text())["schedules"]
    result = _run("simulate", "--workload", _STEPS, "--policy", "continuous")
    assert result.exit_code == 0, result.stderr
    assert "A       P  P  d  #  d  #  d  d" in result.stdout
    assert "P prefill" in result.stdout
    schedules = _json("simulate", "--workload", _STEPS, "--policy", "static", "--policy", "chunked")
    assert [schedule["rows"] for schedule in schedules] == [known["static"]["rows"], known["chunked"]["rows"]]
    pytest.importorskip("matplotlib")
    assert _run("simulate", "--workload", _STEPS, "--plot", tmp_path).exit_code == 0
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_an_experiment_writes_its_table_and_report(trace: Path, tmp_path: Path) -> None:
    """Beside the grid, unless told otherwise; and run again it says the same."""
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'baseline = "chunked"\n[grid]\ntraces = ["small.csv"]\ndevices = "mock"\npolicies = ["chunked", "edf"]\n'
        "loads = [1, 2]\nseeds = [0, 1]\n"
    )
    first = _run("experiment", grid, "--jobs", 1)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == (tmp_path / "grid" / "report.md").read_text()
    assert "| `edf` |" in first.stdout
    assert len((tmp_path / "grid" / "runs.csv").read_text().splitlines()) == 9
    assert (tmp_path / "grid" / "small.png").exists()
    again = _run("experiment", grid, "--jobs", 1, "--no-plot")
    assert again.stdout == first.stdout
    assert len(_json("experiment", grid, "--jobs", 1, "--no-plot")) == 8


def test_a_wrong_grid_is_one_line(tmp_path: Path) -> None:
    """With the key."""
    grid = tmp_path / "grid.toml"
    grid.write_text("[grid]\ntrace = 3\n")
    result = _run("experiment", grid)
    assert result.exit_code == 1
    assert "grid.trace is not known; there are traces" in result.stderr


@pytest.mark.parametrize("name", ["simulate", "experiment"])
def test_help_has_an_example_and_json(name: str) -> None:
    """As of every command."""
    text = " ".join(_run(name, "--help").output.split())
    assert f"Example: headgate {name}" in text
    assert "--json" in text


class _Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_and_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants one for a second, nor in a file."""
    terminal, now = _Terminal(), [0.0]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar(clock=lambda: now[0]) as bar:
        bar.show(0.1, "working")
        assert terminal.text == ""
        now[0] = simulation_progress._PATIENCE_S + 0.1
        bar.show(0.5, "working")
    assert "working" in terminal.text
    monkeypatch.setattr(terminal, "isatty", lambda: False)
    terminal.text = ""
    with Bar(clock=lambda: now[0]) as bar:
        now[0] += 10
        bar.show(0.5, "working")
    assert terminal.text == ""


def test_refusals_and_admissions_are_judged_where_it_is_asked_for(trace: Path) -> None:
    """In detail, as columns of several runs, and case by case as JSON."""
    arguments = ["simulate", "--trace", trace, "--device", "mock", "--load", "40", "--counterfactual", "5"]
    result = _run(*arguments)
    assert result.exit_code == 0, result.stderr
    for part in ("judged by forks", "came again when told", "contracts at most"):
        assert part in result.stdout
    assert "admissions" in _run(*arguments, "--policy", "chunked", "--policy", "headgate").stdout
    (run,) = _json(*arguments)
    found = run["counterfactual"]
    assert len(found["cases"]) == found["false_refusals"]["of"] + found["false_admissions"]["of"]
    assert found["false_refusals"]["count"] == sum(
        case["is_false"] for case in found["cases"] if case["decision"] == "refused"
    )


def test_knowledge_may_be_changed_like_a_part_of_a_policy(trace: Path) -> None:
    """So that a run that knows everything has a name of its own."""
    (run,) = _json("simulate", "--trace", trace, "--device", "mock", "--set", "knowledge=clairvoyant")
    assert run["policy"] == "headgate[knowledge=clairvoyant]"
    refused = _run("simulate", "--trace", trace, "--device", "mock", "--set", "knowledge=everything")
    assert refused.exit_code == 1
    assert "clairvoyant" in refused.stderr
