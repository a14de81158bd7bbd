"""What the rehearsal changes of the compose file, and that it changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.rehearsal.compose import interpolate, load_compose, seconds
from deploy.rehearsal.queries import rule_expressions, with_bool
from deploy.rehearsal.receiver import Span, problems_of_tree
from deploy.rehearsal.translation import Translation

_ADDRESSES = {"nats": "127.9.9.1", "gateway": "127.9.9.2", "gateway-2": "127.9.9.3", "proxy": "127.9.9.4"}


@pytest.fixture
def translation() -> Translation:
    return Translation(_ADDRESSES)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("nats://gateway@nats:4222", "nats://gateway@127.9.9.1:4222"),
        ("http://gateway-2:8080/x", "http://127.9.9.3:8080/x"),
        ("nats", "nats"),
        ("http://jaeger:16686", "http://jaeger:16686"),
        ("0.0.0.0", "127.9.9.2"),
        ("http://localhost:9464", "http://127.9.9.2:9464"),
        ("listen_addresses=127.0.0.1", "listen_addresses=127.9.9.2"),
        ("10.0.0.0", "10.0.0.0"),
    ],
)
def test_names_before_a_port_and_a_containers_own_address_are_changed(
    given: str, wanted: str, translation: Translation
) -> None:
    """A user's name, a name without a port and other addresses stay."""
    assert translation.text(given, of="gateway") == wanted


def test_paths_are_changed_as_wholes(translation: Translation) -> None:
    """`/data` is not the beginning of `/database`, nor the end of `/my/data`; what was put in is not changed again."""
    paths = {"/data": "/elsewhere/x", "/data/in": "/y", "/run/secrets/nats": "/z"}
    text = "/data /data/in /data/other /database my/data /run/secrets/nats-worker"
    wanted = "/elsewhere/x /y /elsewhere/x/other /database my/data /run/secrets/nats-worker"
    assert translation.text(text, of="gateway", paths=paths) == wanted


def test_haproxy_listens_on_its_own_address_and_needs_no_dns(translation: Translation) -> None:
    """Templates become servers; a server that does not run here is left out."""
    config = "  bind :8080\n  server-template gateway 16 gateway:8080\n  server grafana grafana:3000 check\n"
    found = translation.haproxy(config, of="proxy").splitlines()
    assert found == ["  bind 127.9.9.4:8080", "  server gateway1 127.9.9.2:8080", "    # grafana does not run here"]


def test_prometheus_gets_addresses_of_what_runs(tmp_path: Path, translation: Translation) -> None:
    """A job without any target is left out; everything else of the file stays."""
    shipped = tmp_path / "prometheus.yml"
    shipped.write_text(
        "global: {scrape_interval: 5s}\nrule_files: [/rules/*.yml]\nscrape_configs:\n"
        "- {job_name: a, honor_labels: true, dns_sd_configs: [{names: [gateway, jaeger], port: 9464}]}\n"
        "- {job_name: b, dns_sd_configs: [{names: [jaeger], port: 1}]}\n"
    )
    text = translation.prometheus(shipped, of="proxy", paths={"/rules": "/here"}, running={"gateway"})
    assert "127.9.9.2:9464" in text
    assert "/here/*.yml" in text
    assert "scrape_interval: 5s" in text
    assert "job_name: b" not in text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("${A:-x}", "x"), ("${B:-x}", "y"), ("${B}", "y"), ("$${B}", "${B}"), ("${C:-}", ""), ("a${B}c", "ayc")],
)
def test_variables_are_interpolated_as_compose_does(given: str, wanted: str) -> None:
    """A default where there is no value; `$$` is a dollar."""
    assert interpolate(given, {"B": "y"}) == wanted


def test_a_variable_without_value_and_default_is_an_error() -> None:
    """An empty text would hide it."""
    with pytest.raises(KeyError, match="NAME"):
        interpolate({"a": ["${NAME}"]}, {})


@pytest.mark.parametrize(("given", "wanted"), [("5s", 5.0), ("1m30s", 90.0), ("250ms", 0.25)])
def test_durations_are_in_seconds(given: str, wanted: float) -> None:
    """As the specification writes them."""
    assert seconds(given) == wanted


def test_a_duration_that_is_none_is_refused() -> None:
    """Five of what?"""
    with pytest.raises(ValueError, match="5"):
        seconds("5")


def test_what_is_used_must_be_declared(tmp_path: Path) -> None:
    """A secret that nobody declared is found before anything is started."""
    file = tmp_path / "docker-compose.yml"
    file.write_text("services: {a: {image: 'a:1.0', secrets: [s]}}\n")
    with pytest.raises(ValueError, match="secret s"):
        load_compose(file)


def test_services_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    """They would never start."""
    file = tmp_path / "docker-compose.yml"
    on = "depends_on: {%s: {condition: service_healthy}}"
    file.write_text(f"services: {{a: {{image: x, {on % 'b'}}}, b: {{image: x, {on % 'a'}}}}}\n")
    with pytest.raises(ValueError, match="a > b > a"):
        load_compose(file).selected()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a > 2", "a > bool 2"),
        ("(a >= 1) and (b < 3)", "(a >= bool 1) and (b < bool 3)"),
        ('a{x!="y", z=~"u|v"} == 0', 'a{x!="y", z=~"u|v"} == bool 0'),
        ("a > bool 2", "a > bool 2"),
    ],
)
def test_an_alerts_comparison_is_asked_for_its_truth(given: str, wanted: str) -> None:
    """Selectors stay as they are."""
    assert with_bool(given) == wanted


def test_expressions_of_rules_have_names_of_their_own(tmp_path: Path) -> None:
    """Two rules of one name are two expressions."""
    (tmp_path / "r.yml").write_text(
        "groups: [{name: g, rules: [{record: a, expr: b}, {alert: c, expr: b > 1}, {alert: c, expr: b > 2}]}]\n"
    )
    assert rule_expressions(tmp_path) == {"r.yml a": "b", "r.yml c": "b > bool 1", "r.yml c #2": "b > bool 2"}


def test_a_tree_has_one_root_and_all_parents() -> None:
    """A span without its parent and a second root are found."""

    def span(own: str, parent: str) -> Span:
        return Span("t", own, parent, f"span {own}", "s", {}, (), 0)

    assert problems_of_tree([span("1", ""), span("2", "1"), span("3", "2")]) == []
    assert problems_of_tree([span("1", ""), span("2", "")]) == ["2 roots: span 1, span 2"]
    assert problems_of_tree([span("1", ""), span("3", "2")]) == ["their parent is missing: span 3"]
    assert problems_of_tree([]) == ["0 roots: none"]


def test_who_shares_a_name_is_found_by_it() -> None:
    """As Docker's DNS has it: HAProxy gets a server for each, an address that can be only one is the first's."""
    members = {"gateway": ["gateway", "gateway-2"], "nats-1": ["nats"]}
    translation = Translation(_ADDRESSES, members)
    found = translation.haproxy("  server-template g 16 gateway:8080 check\n", of="proxy").splitlines()
    assert found == ["  server g1 127.9.9.2:8080 check", "  server g2 127.9.9.3:8080 check"]
    assert translation.text("nats-1:6222 gateway:80", of="proxy") == "127.9.9.1:6222 127.9.9.2:80"


def test_services_of_a_profile_are_members_of_a_name(tmp_path: Path) -> None:
    """An alias counts only where its service is started."""
    file = tmp_path / "docker-compose.yml"
    file.write_text(
        "services: {a: {image: x, networks: [n]}, b: {image: x, profiles: [p], networks: {n: {aliases: [a]}}}}\n"
        "networks: {n: {}}\n"
    )
    compose = load_compose(file)
    assert compose.members() == {"a": ["a"]}
    assert compose.members("p") == {"a": ["a", "b"], "b": ["b"]}
