"""What the checks share: a stage, its traffic, and a Prometheus to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploy.rehearsal.queries import Prometheus
from deploy.rehearsal.stage import Stage
from deploy.rehearsal.traffic import Traffic

__all__ = ["HEADGATE_SERVICES", "Check", "Rehearsal"]

HEADGATE_SERVICES = ("gateway", "admission", "scheduler", "worker", "ledger")


@dataclass(slots=True)
class Rehearsal:
    """A stage, its traffic, and a Prometheus to ask."""

    stage: Stage
    traffic: Traffic
    prometheus: Prometheus


#: Returns what is wrong, in words; nothing if all is well.
Check = Callable[[Rehearsal], list[str]]
