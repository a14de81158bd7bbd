"""One exposition out of those of many processes.

The processes of a stack share one address to scrape: the gateway's. Each tells its metrics in text form on the bus;
here they are parsed and joined by family, and every sample that is not the gateway's own gets a label that names its
process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["merged"]


def merged(own: CollectorRegistry, others: Mapping[str, bytes]) -> tuple[bytes, str]:
    """The body of /metrics and its content type. `others` maps `role.instance` to an exposition in text form."""
    families = {metric.name: metric for metric in own.collect()}
    for process, text in others.items():
        for metric in text_string_to_metric_families(text.decode()):
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples.extend(
                sample._replace(labels={**sample.labels, "process": process}) for sample in metric.samples
            )
    return generate_latest(_Families(families.values())), CONTENT_TYPE_LATEST


@dataclass(frozen=True)
class _Families:
    """What `generate_latest` needs of a registry."""

    families: Iterable[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.families
