"""The few kinds of Grafana panels that the dashboards are made of, as functions from what they show to their JSON.

Grafana keeps much more in a panel than a person decides on. All of that is here, once; a dashboard's module says only
what is shown, in which unit, and why somebody looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

__all__ = [
    "Panel",
    "Query",
    "Variable",
    "dashboard",
    "late_requests",
    "quantiles",
    "row",
    "stat",
    "state",
    "table",
    "timeseries",
]

Json = dict[str, Any]

_PROMETHEUS: Json = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS = 24
#: What fired, and when, across all panels.
_ALERTS: Json = {
    "name": "Alerts",
    "datasource": _PROMETHEUS,
    "enable": True,
    "iconColor": "red",
    "expr": 'ALERTS{alertname=~"Headgate.+",alertstate="firing"}',
    "step": "60s",
    "titleFormat": "{{alertname}}",
    "textFormat": "{{tenant}} {{slo}} {{model}} {{worker}} {{actor}} {{role}}",
}
_GREEN, _YELLOW, _RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and the name of its series. `exemplars`: mark those that Prometheus keeps, to click on."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """`width` is of 24 columns, `height` of some 30 pixels each."""

    title: str
    queries: tuple[Query, ...]
    body: Json
    width: int = 8
    height: int = 8

    def wide(self, width: int, height: int | None = None) -> Panel:
        return replace(self, width=width, height=height or self.height)


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of `label` that `metric` has, one, several or all."""

    label: str
    metric: str


def timeseries(
    title: str,
    why: str,
    *queries: Query,
    unit: str,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    limits: Sequence[float] = (),
    falling: bool = False,
    log: bool = False,
    links: Sequence[Json] = (),
) -> Panel:
    """Lines over time. `limits`: where it becomes yellow, then red, drawn as lines; `falling`: below them."""
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line+area" if limits else "off"},
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
    }
    field: Json = {"unit": unit, "custom": custom, "links": list(links), "thresholds": _thresholds(limits, falling)}
    if least is not None and not log:
        field["min"] = least
    if most is not None:
        field["max"] = most
    # A promise is drawn as what it is: a line that nothing should cross.
    promised = {
        "matcher": {"id": "byRegexp", "options": "/promised/"},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": _RED}},
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
            {"id": "custom.stacking", "value": {"mode": "none"}},
            {"id": "custom.fillOpacity", "value": 0},
        ],
    }
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, why, queries, field=field, overrides=[promised], options=options)


def stat(
    title: str, why: str, query: Query, *, unit: str, limits: Sequence[float] = (), falling: bool = False
) -> Panel:
    """One number, coloured by `limits` as in `timeseries`."""
    options = {
        "colorMode": "background" if limits else "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }
    field = {"unit": unit, "thresholds": _thresholds(limits, falling)}
    return _panel("stat", title, why, (query,), field=field, options=options).wide(4, 4)


def state(title: str, why: str, query: Query, values: Mapping[int, tuple[str, str]]) -> Panel:
    """States over time, as bars: the word and colour of each value."""
    mapping = {str(value): {"text": text, "color": colour} for value, (text, colour) in values.items()}
    field = {
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "mappings": [{"type": "value", "options": mapping}],
        "color": {"mode": "thresholds"},
    }
    options = {"mergeValues": True, "showValue": "auto", "legend": {"showLegend": False}}
    return _panel("state-timeline", title, why, (query,), field=field, options=options)


def table(
    title: str,
    why: str,
    columns: Mapping[str, tuple[str, str, Sequence[float]]],
    *,
    keys: Sequence[str],
    links: Sequence[Json] = (),
) -> Panel:
    """The present values, a row for each set of `keys` (labels). `columns`: by title the expression, unit, limits
    (below the second red, below the first yellow)."""
    queries = tuple(Query(expr, title) for title, (expr, _, _) in columns.items())
    overrides: list[Json] = []
    renamed: dict[str, str] = {}
    for number, (heading, (_, unit, limits)) in enumerate(columns.items()):
        renamed[f"Value #{_ref(number)}"] = heading
        properties: list[Json] = [{"id": "unit", "value": unit}]
        if limits:
            properties += [
                {"id": "thresholds", "value": _thresholds(limits, falling=limits[0] > limits[-1])},
                {"id": "custom.cellOptions", "value": {"type": "color-text"}},
            ]
        overrides.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
    order = {name: place for place, name in enumerate((*keys, *renamed))}
    panel = _panel(
        "table",
        title,
        why,
        queries,
        field={"custom": {"filterable": True}, "links": list(links)},
        overrides=overrides,
        options={"showHeader": True, "cellHeight": "sm"},
    )
    for target in panel.body["targets"]:
        target |= {"instant": True, "range": False, "format": "table"}
    panel.body["transformations"] = [
        {"id": "merge", "options": {}},
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": renamed},
        },
    ]
    return panel


def row(title: str, *, repeat: str = "") -> Panel:
    """A heading. `repeat`: once for each value of that variable, with all that follows it."""
    body: Json = {"type": "row", "title": title, "collapsed": False, "panels": []}
    if repeat:
        body["repeat"] = repeat
    return Panel(title, (), body, width=_COLUMNS, height=1)


def quantiles(
    metric: str,
    *shares: float,
    where: str = "",
    by: str = "",
    legend: str = "",
    exemplars: bool = False,
    or_zero: bool = False,
) -> tuple[Query, ...]:
    """Quantiles of a histogram. `by` and `legend`: a set of lines for each value of that label. `or_zero`: nothing was
    observed is told as 0, where it is the usual case."""
    found = []
    for share in shares:
        rates = f"rate({metric}_bucket{{{where}}}[$__rate_interval])".replace("{}", "")
        expr = f"histogram_quantile({share:g}, sum by ({', '.join(filter(None, ('le', by)))}) ({rates}))"
        if or_zero:
            expr = f"({expr} >= 0) or vector(0)"
        name = f"p{share * 100:g}"
        # Of the last alone: those of the others are the same.
        found.append(Query(expr, f"{name} {legend}".strip(), exemplars and share == shares[-1]))
    return tuple(found)


def late_requests(tags: str) -> Json:
    """A data link: the traces in Jaeger of the requests with these tags, in the time that is shown."""
    query = {"refId": "A", "queryType": "search", "service": "headgate-gateway", "tags": tags}
    pane = {
        "datasource": "jaeger",
        "queries": [query | {"datasource": {"type": "jaeger", "uid": "jaeger"}}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    # Grafana fills its variables into the URL as it stands, so they are not to be encoded.
    panes = quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}")
    return {"title": "Late requests in Jaeger", "url": f"/explore?schemaVersion=1&panes={panes}", "targetBlank": True}


def dashboard(
    uid: str, title: str, why: str, *panels: Panel, variables: Sequence[Variable] = (), tags: Sequence[str] = ()
) -> Json:
    """Places panels from left to right, and begins a new line where one does not fit."""
    placed, x, y, line = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _COLUMNS:
            x, y, line = 0, y + line, 0
        position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        placed.append({"id": number, "gridPos": position, **panel.body})
        x, line = x + panel.width, max(line, panel.height)
    return {
        "uid": uid,
        "title": title,
        "description": why,
        "tags": ["headgate", *tags],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Headgate",
                "tags": ["headgate"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "templating": {"list": [_variable(variable) for variable in variables]},
        "annotations": {"list": [_ALERTS]},
        "panels": placed,
    }


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metric}, {variable.label})"
    return {
        "type": "query",
        "name": variable.label,
        "label": variable.label.capitalize(),
        "datasource": _PROMETHEUS,
        "query": {"query": query, "refId": "A"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(
    kind: str,
    title: str,
    why: str,
    queries: Sequence[Query],
    *,
    field: Json,
    overrides: Sequence[Json] = (),
    options: Json,
) -> Panel:
    body: Json = {
        "type": kind,
        "title": title,
        "description": why,
        "datasource": _PROMETHEUS,
        "fieldConfig": {"defaults": field, "overrides": list(overrides)},
        "options": options,
        "targets": [
            {
                "refId": _ref(number),
                "datasource": _PROMETHEUS,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "exemplar": query.exemplars,
                "range": True,
            }
            for number, query in enumerate(queries)
        ],
    }
    return Panel(title, tuple(queries), body)


def _ref(number: int) -> str:
    return chr(ord("A") + number)


def _thresholds(limits: Sequence[float], falling: bool) -> Json:
    colours = (_GREEN, _YELLOW, _RED) if len(limits) != 1 else (_GREEN, _RED)
    edges = sorted(limits)
    if falling:
        colours = colours[::-1]
    values: list[float | None] = [None, *edges]
    steps = [{"color": colour, "value": value} for colour, value in zip(colours, values, strict=False)]
    return {"mode": "absolute", "steps": steps}
