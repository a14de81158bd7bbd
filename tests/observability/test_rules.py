"""The shipped Prometheus rules."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

RULES = Path(__file__).resolve().parents[2] / "observability" / "prometheus"
FILES = sorted(RULES.glob("*.yml"))
TESTS = sorted(RULES.glob("tests/*.yml"))


def _promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _alerts() -> list[dict[str, Any]]:
    groups = [group for path in FILES for group in YAML(typ="safe", pure=True).load(path)["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_promtool_takes_the_rules() -> None:
    """They are valid, by the oldest Prometheus that is supported where CI has that."""
    assert FILES
    _promtool("check", "rules", *map(str, FILES))


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else() -> None:
    """The cases of promtool, which say what becomes of each alert."""
    _promtool("test", "rules", *map(str, TESTS))


def test_every_alert_is_tested_both_ways() -> None:
    """There is a case in which it fires, and one in which something like it does not fire it."""
    fires: set[str] = set()
    silent: set[str] = set()
    for path in TESTS:
        for case in YAML(typ="safe", pure=True).load(path)["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
    # In these a harmless neighbour is in the same case: one tenant, or model, of several fires.
    among_others = {"HeadgateContractBurnsSlowly", "HeadgatePredictorDrift"}
    names = {alert["alert"] for alert in _alerts()}
    assert fires == names
    assert silent | among_others == names


def test_every_alert_says_what_and_where_to_read_on() -> None:
    """Severity, summary, description, and the paragraph of its name in docs/operations.md."""
    for alert in _alerts():
        assert alert["labels"]["severity"] in ("critical", "warning"), alert["alert"]
        notes = alert["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"


def test_alerts_are_told_apart_from_missing_data() -> None:
    """With `bool` after its comparisons an alert is 0 or 1 wherever it has data: no `absent`, `unless` or `or`."""
    for alert in _alerts():
        assert not re.search(r"\b(absent|absent_over_time|unless|or)\b", alert["expr"]), alert["alert"]
        assert re.search(r"\s(>|<|==)\s", alert["expr"]), alert["alert"]
