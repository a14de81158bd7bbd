"""The dashboards, as Grafana and Prometheus would read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from exported import catalogue, registries, series
from ruamel.yaml import YAML

from observability.dashboards import DASHBOARDS, FOLDER, encoded, expressions

RULES = FOLDER.parent / "prometheus"
#: Of Prometheus itself.
_OWN = {"up": ("job", "instance")}
#: Put on by whoever scrapes or merges.
_TARGET = {"job", "instance", "process"}
_WORDS = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_SERIES = re.compile(r'"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\b(?:by|on|group_left|without)\s*\([^)]*\)|\{[^}]*\}')
_LANGUAGE = {
    *("sum", "max", "min", "avg", "count", "rate", "increase", "histogram_quantile", "clamp_min", "clamp_max"),
    *("clamp", "abs", "vector", "label_replace", "and", "or", "unless", "bool", "by", "on", "group_left"),
}


def _panels(name: str) -> list[dict[str, Any]]:
    return list(DASHBOARDS[name]()["panels"])


def _rules() -> list[dict[str, Any]]:
    loaded = [YAML(typ="safe", pure=True).load(path) for path in sorted(RULES.glob("*.yml"))]
    return [rule for file in loaded for group in file["groups"] for rule in group["rules"]]


def _all_expressions() -> list[tuple[str, str]]:
    return [*expressions(), *((rule.get("record") or rule["alert"], rule["expr"]) for rule in _rules())]


def _series_in(expression: str) -> set[str]:
    return set(_WORDS.findall(_NOT_SERIES.sub(" ", expression))) - _LANGUAGE


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_json_is_what_the_code_makes(name: str) -> None:
    """`python -m observability.dashboards` has been run since the last change."""
    assert (FOLDER / f"{name}.json").read_text() == encoded(name)


def test_no_json_is_left_of_a_dashboard_that_is_gone() -> None:
    """Grafana would go on to show it."""
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DASHBOARDS)


async def test_every_expression_names_what_is_exported() -> None:
    """By a process of Headgate, a recording rule, or Prometheus itself; and what is recorded is of use to somebody."""
    exported = {*series(catalogue(await registries())), *_OWN}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    used: set[str] = set()
    for where, expression in _all_expressions():
        names = _series_in(expression)
        assert names <= exported | recorded, (where, names - exported - recorded)
        used |= names
    assert recorded <= used
    for name in DASHBOARDS:
        for variable in DASHBOARDS[name]()["templating"]["list"]:
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            assert label in series(catalogue(await registries()))[metric]


async def test_every_matcher_names_a_label_that_its_metric_has() -> None:
    """A matcher on a label that is not there selects nothing, and no error tells."""
    labels = {**series(catalogue(await registries())), **_OWN}
    for where, expression in _all_expressions():
        for name, matchers in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression):
            if ":" in name:
                continue  # recorded: its labels are in its name
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                assert label in {*labels[name], *_TARGET}, (where, name, label)


def test_prometheus_takes_every_expression(tmp_path: Path) -> None:
    """Promtool parses all of them."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    rules = [{"record": f"check:{n}", "expr": expr} for n, (_, expr) in enumerate(_all_expressions())]
    path = tmp_path / "expressions.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "expressions", "rules": rules}]}))
    done = subprocess.run([program, "check", "rules", path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_can_be_understood(name: str) -> None:
    """It says what it shows and in which unit; its lines have names; two do not lie on each other."""
    taken: set[tuple[int, int]] = set()
    for panel in _panels(name):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert len(panel["description"]) > 10, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
        if panel["type"] in ("timeseries", "stat"):
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] != "__auto" for target in panel["targets"]), panel["title"]


def test_times_to_first_tokens_lead_to_traces() -> None:
    """Wherever they are drawn, requests are marked by their exemplars, and a link opens the late ones in Jaeger."""
    found = 0
    of_first_tokens = re.compile(r"(ttft|first_token)_seconds_bucket")
    for name in DASHBOARDS:
        for panel in _panels(name):
            targets = [target for target in panel.get("targets", ()) if of_first_tokens.search(target["expr"])]
            if not targets:
                continue
            found += 1
            assert [target["exemplar"] for target in targets].count(True) == 1, panel[
                "title"
            ]  # or they are drawn twice
            (link,) = panel["fieldConfig"]["defaults"]["links"]
            assert "%22uid%22%3A%22jaeger%22" in link["url"]
            assert "${__from}" in link["url"]
    assert found == 2
