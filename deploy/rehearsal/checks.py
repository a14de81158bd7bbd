"""What must be true of the rehearsed stack. Each check returns what is wrong, in words; nothing if all is well."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping

import psycopg

from deploy.rehearsal.programs import find
from deploy.rehearsal.queries import rule_expressions
from deploy.rehearsal.receiver import Span, problems_of_tree
from deploy.rehearsal.recovery import health_tells_of_dependencies, health_turns_red
from deploy.rehearsal.scene import HEADGATE_SERVICES, Check, Rehearsal
from deploy.rehearsal.traffic import wait_until

__all__ = ["CHECKS", "dashboard_expressions"]

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
_SOON_S = 40.0
#: Rules are evaluated every 15 s, and some go on where others end.
_RULES_S = 60.0
#: A stream of 142 events that somebody kept to its end takes about 10 ms to be read.
_LEAST_SPREAD_S = 0.06


def configurations(it: Rehearsal) -> list[str]:
    """promtool finds nothing wrong with what is shipped, nor with what Prometheus runs on here."""
    shipped = it.stage.root / "deploy" / "prometheus" / "prometheus.yml"
    translated = it.stage.directory / "prometheus-prometheus.yml"
    rules = sorted((it.stage.root / "observability" / "prometheus").glob("*.yml"))
    found = [] if rules else ["no rules in observability/prometheus"]
    for arguments in (
        ["config", "--syntax-only", shipped],
        ["config", translated],
        *(["rules", rule] for rule in rules),
    ):
        done = subprocess.run(
            [find("promtool"), "check", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=30
        )
        if done.returncode:
            found.append(done.stderr.strip() or done.stdout.strip())
    return found


def streams_are_not_buffered(it: Rehearsal) -> list[str]:
    """Through the proxy, events come as they are made: 279 tokens take time, and one that is buffered comes at once."""
    found = []
    for answer in (answer for answer in it.traffic.answers if answer.kind == "stream"):
        first, last = answer.arrivals[0], answer.arrivals[-1]
        if answer.finish != "stop" or not answer.is_right or len(answer.arrivals) < 10:
            found.append(f"a stream of {len(answer.arrivals)} events ended with {answer.finish!r}, or was not right")
        elif last - first < _LEAST_SPREAD_S:
            found.append(f"the first event after {first:.3f} s, the last after {last:.3f} s")
    return found


def refusals_say_why(it: Rehearsal) -> list[str]:
    """429 for the tenant's own limit, 503 for a contract that cannot be kept."""
    found = {(answer.tenant, answer.status, answer.code) for answer in it.traffic.answers if answer.kind == "refused"}
    wanted = {("burst", 429, "rate_limit_exceeded"), ("impatient", 503, "sla_unattainable")}
    return [] if found == wanted else [f"refused were {sorted(found)}, expected {sorted(wanted)}"]


def targets_are_up(it: Rehearsal) -> list[str]:
    """Prometheus scrapes every process that runs here."""
    wanted = len(HEADGATE_SERVICES) + 2  # the proxy, and itself

    def up() -> bool:
        return list(it.prometheus.targets().values()) == ["up"] * wanted

    try:
        wait_until(up, timeout_s=_SOON_S, what="all targets are up")
    except TimeoutError:
        return [f"{len(it.prometheus.targets())} targets of {wanted}: {it.prometheus.targets()}"]
    return []


def expressions_have_data(it: Rehearsal) -> list[str]:
    """Every expression of every dashboard and rule returns a number."""
    rules = rule_expressions(it.stage.root / "observability" / "prometheus")
    missing = {**rules, **dashboard_expressions()}
    if not missing:
        return ["no expressions"]

    def all_there() -> bool:
        for name, text in list(missing.items()):
            if it.prometheus.has_data(text):
                del missing[name]
        return not missing

    try:
        wait_until(all_there, timeout_s=_RULES_S, what="all expressions have data", every_s=2.0)
    except TimeoutError:
        return [f"no data: {name}: {text}" for name, text in sorted(missing.items())]
    return it.prometheus.rules()


def traces_are_trees(it: Rehearsal) -> list[str]:
    """The spans of a request arrive over OTLP as one tree, from every actor, with what is promised of them."""
    receiver = it.stage.receiver
    assert receiver is not None
    found = []
    for answer in [answer for answer in it.traffic.answers if answer.kind == "stream"][:2]:
        try:
            spans = wait_until(
                lambda trace=answer.trace: _whole(receiver.trace(trace)),
                timeout_s=10.0,
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
        wait_until(lambda: it.prometheus.exemplar_traces(series), timeout_s=_SOON_S, what="there are exemplars")
    except TimeoutError as error:
        return [str(error)]
    traces = it.prometheus.exemplar_traces(series)
    return [] if any(receiver.trace(trace) for trace in traces) else [f"none of the traces {sorted(traces)} arrived"]


def usage_is_in_postgres(it: Rehearsal) -> list[str]:
    """What clients received is what PostgreSQL has, to the token, and nothing is left unsettled."""
    it.traffic.stop()
    whole = [answer for answer in it.traffic.answers if answer.finish]
    wanted = (len(whole), sum(answer.output_tokens for answer in whole))
    left = sum(answer.kind == "leave" for answer in it.traffic.answers)
    address = it.stage.translation.address("postgres")
    password = it.stage.secret("postgres-password")
    with psycopg.connect(
        host=address, dbname="headgate", user="headgate", password=password, autocommit=True
    ) as database:

        def sums() -> tuple[int, int, int, int]:
            row = database.execute(
                "SELECT count(*) FILTER (WHERE finish IN ('stop', 'length')),"
                " coalesce(sum(output_tokens) FILTER (WHERE finish IN ('stop', 'length')), 0),"
                " count(*) FILTER (WHERE finish = 'cancelled'), count(*) FILTER (WHERE settled_unix_s IS NULL)"
                " FROM usage WHERE tenant = 'acme'"
            ).fetchone()
            assert row is not None
            return int(row[0]), int(row[1]), int(row[2]), int(row[3])

        try:
            wait_until(lambda: sums() == (*wanted, left, 0), timeout_s=15.0, what="all is settled")
        except TimeoutError:
            return [f"(answered, tokens, left, unsettled): clients {(*wanted, left, 0)}, PostgreSQL {sums()}"]
    return []


#: In their order: the later ones end the traffic, and kill.
CHECKS: Mapping[str, Check] = {
    "promtool finds nothing wrong": configurations,
    "streams pass through the proxy unbuffered": streams_are_not_buffered,
    "refusals say why": refusals_say_why,
    "all targets are up": targets_are_up,
    "every expression of rules and dashboards returns data": expressions_have_data,
    "a request's spans are one tree with what is promised": traces_are_trees,
    "refusals are traced with their numbers": refusals_are_traced,
    "exemplars lead to traces": exemplars_lead_to_traces,
    "usage is in PostgreSQL, to the token": usage_is_in_postgres,
    "health checks turn red, and recover": health_turns_red,
    "health checks tell of what is below": health_tells_of_dependencies,
}


def dashboard_expressions() -> dict[str, str]:
    """Every expression of every dashboard, by dashboard and panel, with Grafana's variables filled in."""
    from observability.dashboards import expressions

    return dict(expressions())


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
