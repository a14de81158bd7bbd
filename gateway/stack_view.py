"""What a gateway hears about the rest of the stack on the bus: who is ready to serve, and everybody's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from prometheus_client import CollectorRegistry

from actors.messages import Exposition, Load
from actors.runtime import Alive, Context
from gateway.text.tokenizer import ModelText
from observability.merge import merged
from policies.vocabulary import WorkerLoad

__all__ = ["Heartbeat", "StackView"]

#: A scheduler reports ten times a second; one that is silent for so long is away.
_LOAD_STALE_S = 2.0
#: Metrics of a process that told none for so long are left out.
_EXPOSITION_STALE_S = 10.0
#: As for a death watch: five missed heartbeats.
_ALIVE_STALE_S = 1.0
#: So long the last heartbeat of a process is remembered, and shown with its age.
_SILENT_S = 30.0


class Heartbeat(NamedTuple):
    """The latest of a process."""

    role: str
    instance: str
    epoch: int
    age_s: float
    state: str | None
    model: str | None


class StackView:
    """`clock` gives monotonic seconds. The context that a model is served with is written to `models` as workers
    tell it."""

    def __init__(self, models: Mapping[str, ModelText], clock: Callable[[], float]) -> None:
        self._models = models
        self._clock = clock
        self._loads: dict[str, tuple[float, Load]] = {}
        self._alive: dict[str, tuple[float, Alive]] = {}
        self._expositions: dict[str, tuple[float, bytes]] = {}

    def heard_load(self, load: Load, ctx: Context) -> None:
        self._loads[load.model] = (self._clock(), load)
        model = self._models.get(load.model)
        if model is not None and load.workers:
            model.max_context = max(worker.max_context for worker in load.workers)

    def heard_metrics(self, exposition: Exposition, ctx: Context) -> None:
        self._expositions[ctx.sender] = (self._clock(), exposition.text)

    def heard_alive(self, alive: Alive, ctx: Context) -> None:
        self._alive[ctx.sender] = (self._clock(), alive)

    def processes(self) -> list[dict[str, object]]:
        """Every process that was heard lately, by name: role, instance, pid, epoch of its lease, state."""
        return [
            {
                "role": name.partition(".")[0],
                "instance": alive.instance,
                "pid": alive.info.get("pid"),
                "epoch": alive.epoch,
                "state": alive.info.get("state"),
            }
            for name, age_s, alive in self._remembered()
            if age_s < _ALIVE_STALE_S
        ]

    def heartbeats(self) -> list[Heartbeat]:
        """The latest heartbeat of every process that was heard in half a minute, by name."""
        return [
            Heartbeat(
                name.partition(".")[0],
                alive.instance,
                alive.epoch,
                age_s,
                "silent" if age_s >= _ALIVE_STALE_S else alive.info.get("state"),
                alive.info.get("model"),
            )
            for name, age_s, alive in self._remembered()
        ]

    def _remembered(self) -> list[tuple[str, float, Alive]]:
        now = self._clock()
        self._alive = {name: heard for name, heard in sorted(self._alive.items()) if now - heard[0] < _SILENT_S}
        return [(name, now - heard_at, alive) for name, (heard_at, alive) in self._alive.items()]

    def workers(self) -> list[WorkerLoad]:
        """Every worker of a scheduler that was heard lately, by model and name, without its requests."""
        since = self._clock() - _LOAD_STALE_S
        return [
            msgspec.structs.replace(worker, requests=[])
            for _, (heard_at, load) in sorted(self._loads.items())
            if heard_at > since
            for worker in sorted(load.workers, key=lambda worker: worker.worker)
        ]

    def not_ready(self, *, is_connected: bool) -> list[str]:
        """Why requests cannot be served now; empty when they can."""
        reasons = [] if is_connected else ["not connected to NATS"]
        now = self._clock()
        for model in self._models:
            heard_at, load = self._loads.get(model, (now - _LOAD_STALE_S, None))
            if load is None or now - heard_at >= _LOAD_STALE_S:
                reasons.append(f"no scheduler for model {model}")
            elif not load.workers:
                reasons.append(f"no worker for model {model}")
        return reasons

    def exposition(self, own: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
        """The body of /metrics and its content type, as the Accept header wants it: ours, and what every other process
        told lately."""
        since = self._clock() - _EXPOSITION_STALE_S
        self._expositions = {name: told for name, told in self._expositions.items() if told[0] > since}
        return merged(own, {name: text for name, (_, text) in self._expositions.items()}, accept)
