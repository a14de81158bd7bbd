from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulator.records import Outcome, StepRecord
from simulator.textbook.workload import Schedule

pytest.importorskip("matplotlib")

from simulator.plots.curves import Curve, Panel, load_curves
from simulator.plots.gantt import gantt, textbook_gantt
from simulator.plots.style import MARKS, save
from simulator.plots.timeline import composition, service, state_over_time


def _step(number: int, begun_s: float, ended_s: float, rows: dict[str, tuple[int, bool]]) -> StepRecord:
    counts, prefill = [count for count, _ in rows.values()], [is_prefill for _, is_prefill in rows.values()]
    return StepRecord("w0", number, begun_s, ended_s, 0.1, list(rows), counts, prefill, 1, len(rows), 4, 0, 0)


_STEPS = [
    _step(1, 0.5, 1.5, {"a": (100, True)}),
    _step(2, 1.5, 1.6, {"a": (1, False)}),
    _step(3, 1.6, 2.6, {"a": (1, False), "b": (100, True)}),
    _step(4, 2.6, 2.7, {"b": (1, False)}),
    _step(5, 2.7, 2.8, {"a": (1, False), "b": (1, False)}),
]


def _outcomes() -> list[Outcome]:
    return [
        Outcome(
            id=name,
            tenant=name * 3,
            tier=1,
            arrived_s=0.0,
            prompt_tokens=100,
            output_tokens=3,
            ttft_s=1.0,
            tpot_s=0.1,
            decision="admitted" if name != "c" else "refused",
            decided_s=0.2,
            scheduled_s=0.5 if name != "c" else None,
            first_token_s=1.5 if name != "c" else None,
            finished_s=2.8 if name != "c" else None,
            generated=3,
            preemptions=int(name == "a"),
        )
        for name in "abc"
    ]


def _colours(page: object) -> dict[int, list[tuple[str, float, float]]]:
    """Row: its bars, by colour, with begin and width."""
    import matplotlib.colors

    names = {matplotlib.colors.to_hex(colour): mark for mark, colour in MARKS.items()}
    bars: dict[int, list[tuple[str, float, float]]] = {}
    for collection in page.axes[0].collections:  # type: ignore[attr-defined]
        mark = names[matplotlib.colors.to_hex(collection.get_facecolor()[0])]
        for path in collection.get_paths():
            box = path.get_extents()
            bars.setdefault(round((box.y0 + box.y1) / 2), []).append((mark, round(box.x0, 3), round(box.width, 3)))
    return bars


def test_a_gantt_chart_tells_prefill_decode_stalls_preemption_and_waiting_apart() -> None:
    """A decode that shares its step with a long prompt is stalled for what is beyond a usual step."""
    bars = _colours(gantt(_STEPS, _outcomes()))
    assert sorted(bars[0]) == [
        ("decode", 1.5, 0.2),
        ("decode", 2.7, 0.1),
        ("preempted", 2.6, 0.1),
        ("prefill", 0.5, 1.0),
        ("stalled", 1.7, 0.9),
        ("waiting", 0.0, 0.5),
    ]
    assert sorted(bars[1]) == [("decode", 2.6, 0.2), ("prefill", 1.6, 1.0), ("waiting", 0.0, 1.6)]
    assert bars[2] == [("waiting", 0.0, 0.2)]


def test_every_picture_is_written(tmp_path: Path) -> None:
    """As PNG, at the width of the docs."""
    schedule = Schedule(strategy="static", batch=4, rows={"A": "..PPd#dx", "B": "  PP"}, req={"A": None, "B": None})
    curve = Curve([0.5, 1.0, 10.0], [1.0, 0.9, 0.1], [0.9, 0.8, 0.0], [1.0, 1.0, 0.2])
    panels = [Panel("Attainment", "", {"ours": curve, "theirs": curve}, share=True, goal=0.9)]
    pages = {
        "gantt": gantt(_STEPS, _outcomes()),
        "textbook": textbook_gantt({"Static": schedule, "Static again": schedule}),
        "curves": load_curves(panels, title="t"),
        "state": state_over_time(_STEPS, blocks=100),
        "composition": composition(_STEPS),
        "service": service(_outcomes(), ended_s=3.0),
        "nothing": gantt([], []),
        "no steps": composition([]),
    }
    for name, page in pages.items():
        data = save(page, tmp_path / "folder" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert int.from_bytes(data[16:20], "big") == 1032


def test_without_matplotlib_the_error_says_what_to_install() -> None:
    """And nothing else of the simulator needs it."""
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import simulator.metrics, simulator.tables, simulator.textbook.workload\n"
        "from simulator.errors import SimulatorError\n"
        "try:\n"
        "    import simulator.plots.style\n"
        "except SimulatorError as error:\n"
        "    assert \"pip install 'headgate[plots]'\" in str(error), error\n"
        "else:\n"
        "    sys.exit('no error')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr
