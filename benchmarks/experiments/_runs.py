"""What the experiments share: runs, small tables, results and pictures in their places."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from policies.vocabulary import Contract, Tenant
from simulator.kinds import make_simulation
from simulator.overrides import changed_policies
from simulator.plots.style import save
from simulator.records import Arrival, Device, Result, Workload
from simulator.simulation import Simulation

__all__ = ["arguments", "at_once", "interval", "mean", "run", "show", "simulation", "write"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
IMAGES = ROOT / "docs" / "images"
#: Student's t at 95 %, two-sided, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def arguments(about: str, names: Sequence[str]) -> tuple[list[str], Path | None]:
    """The experiments that the command line chooses (all of them by default), and where traces lie."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--traces", type=Path, help="folder of the traces; without it, what needs them is left out")
    given = parser.parse_args()
    for name in given.only:
        if name not in names:
            parser.error(f"experiment {name!r}: there are {', '.join(names)}")
    return list(given.only or names), given.traces


def simulation(
    workload: Workload, device: Device, policy: str, changes: Mapping[str, Any] | None = None, **options: Any
) -> Simulation:
    """That of a policy of the catalog, with parts of it changed."""
    return make_simulation(workload, device, changed_policies(policy, changes or {}), **options)


def run(
    workload: Workload, device: Device, policy: str, changes: Mapping[str, Any] | None = None, **options: Any
) -> Result:
    """What became of it."""
    return simulation(workload, device, policy, changes, **options).run()


def at_once(name: str, lengths: Sequence[tuple[int, int]], *, max_tokens: int | None = None) -> Workload:
    """(prompt, output) tokens of requests that all come at 0, of one tenant without a promise.

    :param max_tokens: that all ask for; None: what they need.
    """
    arrivals = [
        Arrival(str(number), 0.0, "everyone", prompt, output, max_tokens or output)
        for number, (prompt, output) in enumerate(lengths)
    ]
    return Workload(name=name, arrivals=arrivals, tenants={"everyone": Tenant(name="everyone", contract=Contract())})


def mean(values: Sequence[float | None]) -> float:
    """Of those that are there."""
    return fmean(value for value in values if value is not None)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    if len(values) < 2:
        return values[0], 0.0
    return fmean(values), _T95[len(values) - 1] * stdev(values) / len(values) ** 0.5


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """A table on standard output; the keys of the first row are its columns."""
    print(f"\n{title}")
    names = list(rows[0])
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(name: str, rows: Sequence[Mapping[str, object]], page: Figure, *, about: str, begun: float) -> None:
    """The result and the picture of an experiment, and both named."""
    rounded = [{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    lines = ",\n  ".join(json.dumps(row) for row in rounded)
    path.write_text(f'{{"about": {json.dumps(about)},\n "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    picture = save(page, IMAGES / f"{name.replace('_', '-')}.png")
    with Image.open(picture) as image:  # few colours: a third of the bytes
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)
    print(f"  {time.perf_counter() - begun:.1f} s: {path.relative_to(ROOT)}, {picture.relative_to(ROOT)}")
