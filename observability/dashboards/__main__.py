"""Writes the JSON of every dashboard."""

from __future__ import annotations

from observability.dashboards import DASHBOARDS, FOLDER, encoded

for name in DASHBOARDS:
    (FOLDER / f"{name}.json").write_text(encoded(name), encoding="utf-8")
