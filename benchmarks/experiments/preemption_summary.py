"""The hybrid beside the better of swap and recompute, from the tables of grids.

    python -m benchmarks.experiments.preemption_summary FOLDER/runs.csv ...

Writes benchmarks/results/experiments/preemption.md, and the columns of each table that it is about beside it.
For every place, load and policy: the goodput of each mode, and that of the hybrid over that of the better of the two,
which is the one whose mean is higher: paired by seed, with a 95 % interval of Student's t.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from benchmarks.experiments._runs import RESULTS, interval

__all__ = ["summary"]

_MODE = re.compile(r";?preemption=(\w+)(?:;offload_share=([\d.]+))?")
_COLUMNS = (
    *("cell_trace", "cell_device", "cell_kv_scale", "cell_slo_scale", "relative_load", "cell_load", "cell_seed"),
    *("cell_policy", "changes", "contract_offered", "contract_met", "goodput_rps", "goodput_tokens_per_s", "free_rps"),
    *("preemptions_per_request", "longest_gap_p99_s", "lost_share", "swapped_gb"),
)
_PLACE = ("cell_trace", "cell_device", "cell_kv_scale", "cell_slo_scale", "relative_load")


def summary(path: Path) -> str:
    """A table of one grid, as Markdown, and what it says in a line."""
    cells: dict[tuple[str, ...], dict[str, dict[str, dict[str, str]]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = _MODE.search(row["changes"])
            assert found is not None, row["changes"]
            mode = found[1] + (" + offload" if found[2] else "")
            rest = _MODE.sub("", row["changes"])
            policy = row["cell_policy"] + (f" ({rest})" if rest else "")
            cells[(*(row[key] for key in _PLACE), policy)][mode][row["cell_seed"]] = row
    names = list(dict.fromkeys(mode for modes in cells.values() for mode in modes))
    heads = ["trace", "device", "KV", "SLO", "load", "policy", "preemptions a request", *names]
    compared = [name for name in names if name.startswith("hybrid")]
    heads += [f"{name} / better" for name in compared]
    lines = [heads, ["---"] * 6 + ["---:"] * (len(heads) - 6)]
    ratios: dict[str, list[float]] = defaultdict(list)
    for place, modes in cells.items():
        goodput = {
            mode: {seed: float(row["goodput_rps"]) for seed, row in runs.items()} for mode, runs in modes.items()
        }
        line = [place[0].split(".")[0], place[1], *(f"{float(part):g}" for part in place[2:5]), place[5]]
        line.append(f"{fmean(float(row['preemptions_per_request']) for row in modes['swap'].values()):.2f}")
        line += [f"{fmean(goodput[mode].values()):.3f}" for mode in names]
        better = max(("recompute", "swap"), key=lambda mode: fmean(goodput[mode].values()))
        total = fmean(goodput[better].values())
        for mode in compared:
            ratio = fmean(goodput[mode].values()) / total - 1
            _, half = interval([(goodput[mode][seed] - goodput[better][seed]) / total for seed in goodput[better]])
            ratios[mode].append(ratio)
            line.append(f"{100 * ratio:+.1f} % ± {100 * half:.1f}")
        lines.append(line)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for mode, values in ratios.items():
        text += (
            f"\n\n`{mode}`: {100 * min(values):+.1f} % at worst, {100 * max(values):+.1f} % at best, "
            f"{100 * fmean(values):+.1f} % in the mean of {len(values)} cells; more than 3 % below in "
            f"{sum(value < -0.03 for value in values)}, more than 5 % above in {sum(value > 0.05 for value in values)}."
        )
    return text


def narrow(path: Path, to: Path) -> None:
    """The columns of a table that preemption concerns."""
    with path.open(encoding="utf-8", newline="") as source, to.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in csv.DictReader(source):
            writer.writerow([_short(row[column]) for column in _COLUMNS])


def _short(text: str) -> str:
    try:
        return f"{float(text):.5g}"
    except ValueError:
        return text


if __name__ == "__main__":
    parts = ["# Preemption", *(f"## {Path(name).parent.name}\n\n{summary(Path(name))}" for name in sys.argv[1:])]
    (RESULTS / "preemption.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for name in sys.argv[1:]:
        narrow(Path(name), RESULTS / f"{Path(name).parent.name}.csv")
    print("\n\n".join(parts))
