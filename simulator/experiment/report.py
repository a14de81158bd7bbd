"""What a grid says: a tidy CSV with a row a run, and a report with a table a workload.

Figures are means over seeds with 95 % bootstrap intervals. Differences to the baseline are paired: run by run on the
same seed, so that what the seeds have in common falls out.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from simulator.experiment.cell import Cell
from simulator.experiment.grid import Grid
from simulator.experiment.store import CellResult
from simulator.judgement import Share
from simulator.metrics import Metrics, flat
from simulator.quantiles import bootstrap_mean

__all__ = ["FIGURES", "Figure", "groups_of", "make_report", "write_csv"]


class Figure(msgspec.Struct, frozen=True):
    """A figure of merit: its heading, where it is in a run's metrics, and how it is written."""

    heading: str
    of: Callable[[Metrics], float | None]
    form: str  # percent | number


FIGURES = (
    Figure("attainment of the admitted", lambda m: m.contract.attainment_admitted, "percent"),
    Figure("of the offered", lambda m: m.contract.attainment_offered, "percent"),
    Figure("worst decile of prompts", lambda m: _lowest(m), "percent"),
    Figure("goodput, requests/s", lambda m: m.goodput_rps, "number"),
    Figure("goodput, tokens/s", lambda m: m.goodput_tokens_per_s, "number"),
    Figure("without contract, finished/s", lambda m: m.free_rps, "number"),
    Figure("TTFT P99, s", lambda m: m.contract.ttft_p99_s, "number"),
    Figure("TPOT P99, ms", lambda m: _thousand(m.contract.tpot_p99_s), "number"),
    Figure("Jain index", lambda m: m.jain_index, "number"),
)
#: Shown only where they were asked for.
_JUDGED = (
    Figure("false refusals", lambda m: _false(m, "false_refusals"), "percent"),
    Figure("false admissions", lambda m: _false(m, "false_admissions"), "percent"),
)
#: Those that are compared with the baseline.
_COMPARED = (FIGURES[1], FIGURES[3])
_Place = tuple[str, ...]


def _lowest(metrics: Metrics) -> float | None:
    return min((g.attainment_offered for g in metrics.deciles if g.attainment_offered is not None), default=None)


def _false(metrics: Metrics, name: str) -> float | None:
    found = metrics.counterfactual
    judged: Share | None = None if found is None else getattr(found, name)
    return judged.share if judged else None


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def write_csv(results: Sequence[CellResult], path: Path) -> None:
    """A row a run: its parameters, then its figures. Empty where there is none.

    `of_clairvoyant` is the attainment of the offered over that of the first policy of the grid that knows everything,
    in a run that differs in the policy alone.
    """
    rows = []
    knowing = _knowing(results)
    for result in results:
        cell = msgspec.structs.asdict(result.cell)
        changes = cell.pop("changes")
        cell |= {key: Path(cell[key]).name for key in ("trace", "tenants", "device") if cell[key]}
        parameters = {
            **{f"cell_{key}": value for key, value in cell.items()},
            "changes": ";".join(f"{key}={value}" for key, value in changes.items()),
            "relative_load": result.relative_load,
        }
        best = knowing.get(_pair(result))
        ratio = None if best is None else _ratio(result.metrics, best)
        rows.append(parameters | flat(result.metrics) | {"of_clairvoyant": ratio})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _pair(result: CellResult) -> bytes:
    """Equal for runs that differ in the policy alone."""
    return msgspec.json.encode(msgspec.structs.replace(result.cell, policy="", changes={}, counterfactual=0))


def _knowing(results: Sequence[CellResult]) -> dict[bytes, Metrics]:
    """The run of the first policy that knows everything, for all that it is paired with."""
    found: dict[bytes, Metrics] = {}
    for result in results:
        if result.cell.told == "clairvoyant":
            found.setdefault(_pair(result), result.metrics)
    return found


def _ratio(metrics: Metrics, best: Metrics) -> float | None:
    """Of their attainments of the offered."""
    mine, theirs = metrics.contract.attainment_offered, best.contract.attainment_offered
    return None if mine is None or not theirs else mine / theirs


def groups_of(
    results: Sequence[CellResult],
) -> dict[_Place, dict[float, dict[str, dict[int, Metrics]]]]:
    """Results by what they ran on, then by load, policy and seed. The place names only what differs in the grid."""
    fields = ["trace", *_varying([result.cell for result in results])]
    places: dict[_Place, dict[float, dict[str, dict[int, Metrics]]]] = {}
    for result in results:
        place = tuple(_shown(field, getattr(result.cell, field)) for field in fields)
        loads = places.setdefault(place, defaultdict(lambda: defaultdict(dict)))
        loads[result.relative_load][result.cell.name][result.cell.seed] = result.metrics
    return places


def _varying(cells: Sequence[Cell]) -> list[str]:
    fixed = ("trace", "policy", "changes", "load", "seed")
    fields = [field for field in Cell.__struct_fields__ if field not in fixed]
    return [field for field in fields if len({getattr(cell, field) for cell in cells}) > 1]


def _shown(field: str, value: object) -> str:
    if field == "trace":
        return (
            Path(str(value)).name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl").removesuffix(".toml")
        )
    if field in ("tenants", "device"):
        return Path(str(value)).stem if value else "default tenants"
    return f"{field} {value}"


def make_report(grid: Grid, results: Sequence[CellResult]) -> str:
    """The report, as Markdown."""
    seeds = sorted({result.cell.seed for result in results})
    named = f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))})"
    parts = [f"# {grid.name}", f"{len(results)} runs; mean over {named} [95 % bootstrap interval]."]
    if grid.anchor is not None:
        parts.append(
            f"A load of 1 is the largest at which `{grid.anchor.policy}` keeps {grid.anchor.attainment:.0%} of what is "
            "offered in contract."
        )
    knowing = next((result.cell.name for result in results if result.cell.told == "clairvoyant"), "")
    for place, loads in groups_of(results).items():
        parts.append(f"## {' · '.join(place)}")
        if grid.anchor is not None:
            parts.append(_anchor_line(results, place))
        for load, policies in sorted(loads.items()):
            parts += [f"### Load {load:g}", _table(policies, knowing)]
            if grid.baseline in policies and len(policies) > 1:
                parts.append(_differences(policies, grid.baseline))
    return "\n\n".join(part for part in parts if part) + "\n"


def _anchor_line(results: Sequence[CellResult], place: _Place) -> str:
    cell = next(result for result in results if _shown("trace", result.cell.trace) == place[0])
    return f"Load 1 is {cell.cell.load / cell.relative_load:.3g} times the speed of the trace."


def _table(policies: Mapping[str, Mapping[int, Metrics]], knowing: str) -> str:
    everybody = [metrics for runs in policies.values() for metrics in runs.values()]
    figures = [*FIGURES, *(figure for figure in _JUDGED if any(figure.of(m) is not None for m in everybody))]
    best = policies.get(knowing, {})
    lines = [
        ["policy", *(figure.heading for figure in figures), *(["of the offered, of the clairvoyant's"] * bool(best))]
    ]
    for name, runs in policies.items():
        line = [f"`{name}`", *(_interval(figure, list(runs.values())) for figure in figures)]
        if best:
            ratios = [_ratio(runs[seed], best[seed]) for seed in runs if seed in best]
            line.append(_mean_percent([ratio for ratio in ratios if ratio is not None]))
        lines.append(line)
    bounds = [bound for metrics in everybody if (bound := metrics.attainment_bound) is not None]
    above = (
        f"\n\nNobody can keep more than {_mean_percent(bounds)} of what is offered (a fluid device)." if bounds else ""
    )
    return _markdown(lines) + above


def _mean_percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, low, high = (f"{100 * value:.1f}" for value in bootstrap_mean(values))
    return f"{mean} %" if len(values) == 1 or low == high else f"{mean} % [{low} %, {high} %]"


def _interval(figure: Figure, runs: Sequence[Metrics]) -> str:
    values = [value for run in runs if (value := figure.of(run)) is not None]
    if not values:
        return "-"
    mean, low, high = bootstrap_mean(values)
    if len(values) == 1:
        return _written(figure, mean)
    return f"{_written(figure, mean)} [{_written(figure, low)}, {_written(figure, high)}]"


def _differences(policies: Mapping[str, Mapping[int, Metrics]], baseline: str) -> str:
    """Paired by seed."""
    base = policies[baseline]
    lines = [["against `" + baseline + "`, paired", *(figure.heading for figure in _COMPARED), "ratio of goodput"]]
    for name, runs in policies.items():
        shared = [seed for seed in runs if seed in base]
        if name == baseline or not shared:
            continue
        line = [f"`{name}`"]
        for figure in _COMPARED:
            pairs = [(figure.of(runs[seed]), figure.of(base[seed])) for seed in shared]
            values = [a - b for a, b in pairs if a is not None and b is not None]
            line.append(_signed(figure, values) if values else "-")
        ratios = [runs[seed].goodput_rps / base[seed].goodput_rps for seed in shared if base[seed].goodput_rps]
        line.append("-" if not ratios else "{:.2f} [{:.2f}, {:.2f}]".format(*bootstrap_mean(ratios)))
        lines.append(line)
    return _markdown(lines)


def _signed(figure: Figure, values: Sequence[float]) -> str:
    mean, low, high = (
        f"{100 * value:+.1f}" if figure.form == "percent" else f"{value:+.3g}" for value in bootstrap_mean(values)
    )
    unit = " points" if figure.form == "percent" else ""
    return f"{mean}{unit} [{low}, {high}]"


def _written(figure: Figure, value: float) -> str:
    return f"{100 * value:.1f} %" if figure.form == "percent" else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
