"""What Prometheus is asked: targets, and whether an expression returns data."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

__all__ = ["Prometheus", "rule_expressions", "with_bool"]

#: A comparison that filters; not within a selector's braces or a text, which have no spaces around theirs.
_COMPARISON = re.compile(r"\s(==|!=|>=|<=|>|<)\s+(?!bool\b)")


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=10.0)

    def close(self) -> None:
        self._http.close()

    def targets(self) -> dict[str, str]:
        """Health by `job address`, with the last error."""
        found = self._http.get("/api/v1/targets", params={"state": "active"}).raise_for_status().json()
        return {
            f"{target['labels']['job']} {target['scrapeUrl']}": target["health"]
            + (f": {target['lastError']}" if target["lastError"] else "")
            for target in found["data"]["activeTargets"]
        }

    def values(self, expression: str) -> list[float]:
        """The values that an expression has now. :raises ValueError: it is refused, with Prometheus' words."""
        answer = self._http.get("/api/v1/query", params={"query": expression})
        found: dict[str, Any] = answer.json()
        if found["status"] != "success":
            raise ValueError(f"{found['error']}: {expression}")
        result = found["data"]["result"]
        if found["data"]["resultType"] == "scalar":
            return [float(result[1])]
        return [float(sample["value"][1]) for sample in result]

    def has_data(self, expression: str) -> bool:
        """Whether it returns a series with a number: a quantile or a share of nothing is none."""
        return any(not math.isnan(value) for value in self.values(expression))

    def exemplar_traces(self, series: str, *, seconds: float = 600.0) -> set[str]:
        """Ids of the traces that the buckets of a histogram name, of the last `seconds`."""
        now = time.time()
        asked = {"query": series, "start": f"{now - seconds:.3f}", "end": f"{now + 1:.3f}"}
        found = self._http.get("/api/v1/query_exemplars", params=asked).raise_for_status().json()
        exemplars = [exemplar for one in found["data"] for exemplar in one["exemplars"]]
        return {str(exemplar["labels"].get("trace_id", "")) for exemplar in exemplars}

    def rules(self) -> list[str]:
        """Groups whose evaluation went wrong, with the error."""
        found = self._http.get("/api/v1/rules").raise_for_status().json()
        return [
            f"{group['name']} {rule['name']}: {rule['lastError']}"
            for group in found["data"]["groups"]
            for rule in group["rules"]
            if rule["health"] == "err"
        ]


def rule_expressions(folder: Path) -> dict[str, str]:
    """Every expression of the rule files by its rule's name.

    What an alert compares is asked as 0 or 1, since it returns nothing as long as all is well.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.yml")):
        for group in (YAML(typ="safe", pure=True).load(path) or {}).get("groups", ()):
            for rule in group["rules"]:
                name = rule.get("record") or rule["alert"]
                key = f"{path.name} {name}"
                number = sum(other.startswith(key) for other in found)
                expression = str(rule["expr"])
                found[f"{key} #{number + 1}" if number else key] = (
                    with_bool(expression) if "alert" in rule else expression
                )
    return found


def with_bool(expression: str) -> str:
    """`a > 2` as `a > bool 2`: a value for every series, whether or not it is above."""
    return _COMPARISON.sub(lambda found: f" {found[1]} bool ", expression)
