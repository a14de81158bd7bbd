"""What must be true of the rehearsed stack. Each check returns what is wrong, in words; nothing if all is well."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

import httpx
import psycopg

from deploy.rehearsal.programs import find
from deploy.rehearsal.queries import rule_expressions
from deploy.rehearsal.recovery import health_tells_of_dependencies, health_turns_red
from deploy.rehearsal.scene import HEADGATE_SERVICES, Check, Rehearsal
from deploy.rehearsal.traces import exemplars_lead_to_traces, refusals_are_traced, traces_are_trees
from deploy.rehearsal.traffic import wait_until

__all__ = ["CHECKS", "dashboard_expressions"]

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


def operators_look_through_the_proxy(it: Rehearsal) -> list[str]:
    """The live page asks for the key; with it frames arrive as they are told; metrics are not for clients."""
    base, key = it.stage.url("proxy", 8081), it.stage.secret("admin-key")
    with httpx.Client(trust_env=False, timeout=10.0, headers={"authorization": f"Bearer {key}"}) as operator:
        page = httpx.get(base, trust_env=False, follow_redirects=True)
        found = [] if page.status_code == 200 and "password" in page.text else [f"the page answers {page.status_code}"]
        with operator.stream("GET", f"{base}/admin/v1/live") as live:
            frames = (json.loads(line[5:]) for line in live.iter_lines() if line.startswith("data:"))
            first, second = next(frames), next(frames)
        if not first["full"] or second["full"] or not {"tenants", "steps", "decisions"} <= first.keys():
            found.append("the live view does not begin with a full frame and go on with others")
    status = httpx.get(f"{it.stage.url('proxy', 8080)}/metrics", trust_env=False).status_code
    return found if status == 404 else [*found, f"/metrics on the clients' port answers {status}"]


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
    "operators look through the proxy": operators_look_through_the_proxy,
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
