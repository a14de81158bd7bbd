"""Grafana dashboards as code: `python -m observability.dashboards` writes their JSON beside this file.

The JSON is committed, since Grafana reads it from here; a test holds that it is what the code makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from observability.dashboards.contracts import contracts
from observability.dashboards.edge import edge
from observability.dashboards.messaging import messaging
from observability.dashboards.scheduler import scheduler
from observability.dashboards.workers import workers

__all__ = ["DASHBOARDS", "FOLDER", "encoded", "expressions"]

#: Where the JSON lies: <name>.json.
FOLDER = Path(__file__).resolve().parent

DASHBOARDS: dict[str, Callable[[], dict[str, Any]]] = {
    "contracts": contracts,
    "scheduler": scheduler,
    "workers": workers,
    "edge": edge,
    "messaging": messaging,
}

#: What Grafana would fill in; an interval is long enough for rates of what is scraped every 15 s.
_VARIABLES = {"$__rate_interval": "1m", "$tenant": ".*", "$model": ".*", "$worker": ".*"}


def encoded(name: str) -> str:
    """The JSON of a dashboard, as it is committed."""
    return json.dumps(DASHBOARDS[name](), indent=2, ensure_ascii=False) + "\n"


def expressions() -> list[tuple[str, str]]:
    """Every PromQL expression of every dashboard, with Grafana's variables filled in, after where it is: dashboard,
    panel and the letter of its query. (Those of the rules are in their files.)"""
    found = []
    for name, make in DASHBOARDS.items():
        for panel in make()["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"]
                for variable, value in _VARIABLES.items():
                    expression = expression.replace(variable, value)
                found.append((f"{name}: {panel['title']} #{panel['id']}{target['refId']}", expression))
    return found
