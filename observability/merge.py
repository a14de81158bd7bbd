"""One exposition out of those of many processes.

The processes of a stack share one address to scrape: the gateway's. Each tells its metrics in text form on the bus;
here they are parsed and joined by family, and every sample that is not the gateway's own gets a label that names its
process. Exemplars stay with their buckets: the gateway's own, and those of expositions told as OpenMetrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

__all__ = ["merged"]

#: OpenMetrics ends with it, the plain text of Prometheus never does.
_EOF = b"# EOF\n"


def merged(own: CollectorRegistry, others: Mapping[str, bytes], accept: str = "") -> tuple[bytes, str]:
    """The body of /metrics and its content type, as the Accept header wants it.

    `others` maps `role.instance` to an exposition in either text form.
    """
    families = {metric.name: metric for metric in own.collect()}
    for process, text in others.items():
        for metric in _parsed(text):
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples.extend(
                sample._replace(labels={**sample.labels, "process": process}) for sample in metric.samples
            )
    encode, content_type = choose_encoder(accept)
    return encode(_Families(families.values())), content_type


def _parsed(text: bytes) -> Iterator[Metric]:
    # The parser of OpenMetrics takes half as long again: only what has exemplars is told in it.
    parse = open_families if text.endswith(_EOF) else plain_families
    return iter(parse(text.decode()))


@dataclass(frozen=True)
class _Families:
    """What an encoder needs of a registry."""

    families: Iterable[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.families
