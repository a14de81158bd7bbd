"""docs/operations.md says what is there: every alert, every variable, every service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from deploy.rehearsal.compose import load_compose

_ROOT = Path(__file__).resolve().parent.parent.parent
_OPERATIONS = (_ROOT / "docs" / "operations.md").read_text()


def _alerts() -> dict[str, dict[str, Any]]:
    yaml = YAML(typ="safe", pure=True)
    files = sorted((_ROOT / "observability" / "prometheus").glob("*.yml"))
    groups = [group for path in files for group in (yaml.load(path) or {}).get("groups", ())]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _sections() -> dict[str, str]:
    """Text by heading of the third level."""
    parts = re.split(r"^### (.+)$", _OPERATIONS, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("alert", _alerts())
def test_every_alert_has_a_section_that_says_what_to_do(alert: str) -> None:
    """Its runbook link leads there."""
    assert len(_sections()[alert].split()) >= 30
    assert _alerts()[alert]["annotations"]["runbook_url"] == f"docs/operations.md#{alert.lower()}"


def test_no_section_is_about_an_alert_that_is_not_there() -> None:
    """A rule that was renamed leaves no orphan."""
    assert {name for name in _sections() if name.startswith("Headgate")} == set(_alerts())


def test_every_variable_of_the_compose_file_is_told() -> None:
    """But for the version, which the images are tagged with."""
    used = set(re.findall(r"\$\{(\w+)", (_ROOT / "docker-compose.yml").read_text())) - {"HEADGATE_VERSION"}
    assert [name for name in sorted(used) if f"`{name}`" not in _OPERATIONS] == []


def test_every_service_is_told() -> None:
    """By its name."""
    services = load_compose(_ROOT / "docker-compose.yml").services
    assert [name for name in services if not re.search(rf"\b{re.escape(name)}\b", _OPERATIONS)] == []


def test_dashboards_find_their_data_sources() -> None:
    """Every uid that a dashboard names is one that is provisioned, and where they are mounted they are looked for."""
    provisioning = _ROOT / "deploy" / "grafana" / "provisioning"
    yaml = YAML(typ="safe", pure=True)
    sources = yaml.load(provisioning / "datasources" / "headgate.yml")["datasources"]
    dashboards = list((_ROOT / "observability" / "dashboards").glob("*.json"))
    named = {uid for path in dashboards for uid in _uids(json.loads(path.read_text()))}
    assert named <= {source["uid"] for source in sources} | {"-- Grafana --", "grafana"}
    assert {"prometheus", "jaeger"} == {source["uid"] for source in sources}
    path = yaml.load(provisioning / "dashboards" / "headgate.yml")["providers"][0]["options"]["path"]
    mounts = load_compose(_ROOT / "docker-compose.yml").services["grafana"].mounts
    assert {mount.target: mount.source for mount in mounts}[path] == "./observability/dashboards"


def _uids(value: Any) -> Iterator[str]:
    """Of data sources, wherever they are named."""
    if isinstance(value, dict):
        if isinstance(value.get("datasource"), dict) and "uid" in value["datasource"]:
            yield value["datasource"]["uid"]
        for item in value.values():
            yield from _uids(item)
    elif isinstance(value, list):
        for item in value:
            yield from _uids(item)


def test_links_within_the_page_lead_somewhere() -> None:
    """Every `#anchor` is a heading."""
    headings = re.findall(r"^#+ (.+)$", _OPERATIONS, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", _OPERATIONS)) <= anchors
