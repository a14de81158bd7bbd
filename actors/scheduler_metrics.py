"""The state of a scheduler as metrics, asked for at each scrape: who runs and who waits, how urgently, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import inf
from statistics import median

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from actors.scheduler import SchedulerActor
from policies.vocabulary import Tier

__all__ = ["SchedulerState"]


class SchedulerState:
    """A collector for the registry of the process. `clock` gives the seconds of the actor's."""

    def __init__(self, actor: SchedulerActor, *, model: str, clock: Callable[[], float]) -> None:
        self._actor = actor
        self._model = model
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        now, links = self._clock(), self._actor.links
        live: dict[int, float] = dict.fromkeys(Tier, 0)
        waiting: dict[int, float] = dict.fromkeys(Tier, 0)
        slacks: dict[int, list[float]] = {tier: [] for tier in Tier}
        for link in links:
            for row in link.core.load(now, link.worker).requests:
                live[row.tier] += 1
            for tier in link.core.view(now).queue:
                waiting[tier.tier] += tier.waiting
                slacks[tier.tier] += tier.slacks_s
        running: dict[int, float] = {tier: live[tier] - waiting[tier] for tier in Tier}
        for request in self._actor.unplaced:
            waiting[request.tier] += 1
        yield self._by_tier("headgate_requests_running", "Requests in the slots of workers.", running)
        yield self._by_tier(
            "headgate_requests_waiting", "Requests that wait for a slot, preempted ones and unplaced ones too.", waiting
        )
        yield self._by_tier(
            "headgate_queue_slack_min_seconds",
            "How much later the most urgent waiting request could start and keep its promise; negative: too late. "
            "+Inf: nobody waits with a promise.",
            {int(tier): min(slacks[tier], default=inf) for tier in Tier},
        )
        yield self._by_tier(
            "headgate_queue_slack_median_seconds",
            "As the least, of half of those that wait.",
            {int(tier): median(slacks[tier]) if slacks[tier] else inf for tier in Tier},
        )
        attached = GaugeMetricFamily("headgate_workers_attached", "Workers that are served.", labels=("model",))
        attached.add_metric((self._model,), len(links))
        yield attached
        slots = GaugeMetricFamily(
            "headgate_worker_slots", "Slots of a worker, by state.", labels=("model", "worker", "state")
        )
        for link in links:
            used = link.core.census().running
            slots.add_metric((self._model, link.worker, "used"), used)
            slots.add_metric((self._model, link.worker, "free"), link.spec.slots - used)
        yield slots

    def _by_tier(self, name: str, documentation: str, values: Mapping[int, float]) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=("model", "tier"))
        for tier in Tier:
            family.add_metric((self._model, tier.name), values[tier])
        return family
