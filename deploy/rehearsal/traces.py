"""Checks of traces: whole, from every actor, with what is promised of them, and found from a metric."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.rehearsal.receiver import Span, problems_of_tree
from deploy.rehearsal.scene import Rehearsal
from deploy.rehearsal.traffic import wait_until

__all__ = ["exemplars_lead_to_traces", "refusals_are_traced", "traces_are_trees"]

#: The spans of an answered request and the attributes that docs/observability.md promises of them.
_SPANS: dict[str, tuple[str, tuple[str, ...]]] = {
    "POST /v1/chat/completions": (
        "headgate-gateway",
        (
            "headgate.tenant",
            "headgate.tier",
            "headgate.request_id",
            "gen_ai.request.model",
            "http.response.status_code",
        ),
    ),
    "admission": (
        "headgate-admission",
        ("headgate.tenant", "headgate.tier", "headgate.decision", "headgate.deadline_ms", "headgate.predicted_ttft_ms"),
    ),
    "queue": ("headgate-scheduler", ("headgate.request_id",)),
    "prefill": ("headgate-scheduler", ("headgate.prompt_tokens", "headgate.chunks")),
    "decode": ("headgate-scheduler", ("headgate.output_tokens", "headgate.preemptions")),
    "chat headgate-demo": (
        "headgate-worker",
        (
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.request.model",
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.output_tokens",
            "gen_ai.response.finish_reasons",
        ),
    ),
}
_REFUSED = ("headgate.decision", "headgate.reason", "headgate.measured", "headgate.threshold")
_ARRIVED_S = 10.0
_SCRAPED_S = 40.0


def traces_are_trees(it: Rehearsal) -> list[str]:
    """The spans of a request arrive over OTLP as one tree, from every actor, with what is promised of them."""
    receiver = it.stage.receiver
    assert receiver is not None
    found = []
    for answer in [answer for answer in it.traffic.answers if answer.kind == "stream"][:2]:
        try:
            spans = wait_until(
                lambda trace=answer.trace: _whole(receiver.trace(trace)),
                timeout_s=_ARRIVED_S,
                what=f"spans of {answer.trace}",
            )
        except TimeoutError as error:
            found.append(f"{error}: {sorted(span.name for span in receiver.trace(answer.trace))}")
            continue
        found += problems_of_tree(spans) + [problem for span in spans for problem in _lacks(span)]
    return found


def refusals_are_traced(it: Rehearsal) -> list[str]:
    """A request that was refused has a trace with the decision and its numbers."""
    receiver = it.stage.receiver
    assert receiver is not None
    found = []
    for answer in [answer for answer in it.traffic.answers if answer.kind == "refused"][:2]:
        spans = {span.name: span for span in receiver.trace(answer.trace)}
        if "admission" not in spans:
            found.append(f"{answer.code}: no span of admission, only {sorted(spans)}")
            continue
        found += problems_of_tree(spans.values())
        found += [f"{answer.code}: no {name}" for name in _REFUSED if name not in spans["admission"].attributes]
    return found


def exemplars_lead_to_traces(it: Rehearsal) -> list[str]:
    """A bucket of the time to the first token names a trace that arrived."""
    receiver = it.stage.receiver
    assert receiver is not None
    series = "gen_ai_server_time_to_first_token_seconds_bucket"
    try:
        wait_until(lambda: it.prometheus.exemplar_traces(series), timeout_s=_SCRAPED_S, what="there are exemplars")
    except TimeoutError as error:
        return [str(error)]
    traces = it.prometheus.exemplar_traces(series)
    return [] if any(receiver.trace(trace) for trace in traces) else [f"none of the traces {sorted(traces)} arrived"]


def _whole(spans: list[Span]) -> list[Span]:
    return spans if {span.name for span in spans} >= _SPANS.keys() else []


def _lacks(span: Span) -> Iterable[str]:
    if span.name not in _SPANS:
        return
    service, attributes = _SPANS[span.name]
    if span.service != service:
        yield f"{span.name} comes from {span.service}, not {service}"
    for name in attributes:
        if name not in span.attributes:
            yield f"{span.name} has no {name}"
