"""docker-compose.yml against the specification's schema, and against the rules that this project holds its services
to."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from deploy.rehearsal.compose import Compose, Service, load_compose, seconds
from headgate.secret_files import SecretFiles

_ROOT = Path(__file__).resolve().parent.parent.parent
_COMPOSE = _ROOT / "docker-compose.yml"
_PINNED = re.compile(r"^[\w./-]+:v?\d+\.\d+(\.\d+)?[\w.-]*$")
#: The one container that runs as root: it gives new volumes to the others' user, and has nothing else to do it with.
_CHOWNS = "volumes"


@pytest.fixture(scope="module")
def compose() -> Compose:
    return load_compose(_COMPOSE)


def _services() -> list[str]:
    return list(load_compose(_COMPOSE).services)


def _long_running() -> list[str]:
    return [name for name, service in load_compose(_COMPOSE).services.items() if not service.is_one_shot]


def test_the_file_is_what_the_specification_says() -> None:
    """It validates against the Compose specification's JSON schema, after interpolation."""
    schema = resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    read = YAML(typ="safe", pure=True).load(_COMPOSE)
    validator = jsonschema.validators.validator_for(json.loads(schema.read_text()))(json.loads(schema.read_text()))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(_plain(read))] == []


def test_the_schema_would_find_a_slip() -> None:
    """The schema is one that refuses: a misspelt key of a service is an error."""
    schema = json.loads((resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json").read_text())
    wrong = {"services": {"gateway": {"image": "a:1", "health_check": {}}}}
    assert list(jsonschema.validators.validator_for(schema)(schema).iter_errors(wrong))


def test_every_file_that_is_mounted_or_built_from_exists(compose: Compose) -> None:
    """A bind mount of a missing file would become an empty directory."""
    paths = [mount.source for service in compose.services.values() for mount in service.mounts if mount.is_path]
    for service in compose.services.values():
        build = service.raw.get("build", {})
        paths += [build["context"]] if build else []
        paths += [f"{build['context']}/{build['dockerfile']}"] if "dockerfile" in build else []
    assert [path for path in paths if not (_ROOT / path).exists()] == []


def test_every_secret_is_one_that_the_command_makes(compose: Compose, tmp_path: Path) -> None:
    """`headgate secrets init` makes each file that the compose file takes as a secret."""
    assert set(compose.secrets) <= set(SecretFiles(tmp_path / "secrets").make_missing())


def test_every_declared_secret_volume_and_network_is_used(compose: Compose) -> None:
    """Nothing is declared that no service has."""
    services = compose.services.values()
    assert set(compose.secrets) == {name for service in services for name in service.secrets}
    assert set(compose.volumes) == {
        mount.source for service in services for mount in service.mounts if not mount.is_path
    }
    assert set(compose.networks) == {name for service in services for name in service.raw.get("networks", ())}


@pytest.mark.parametrize("name", _services())
def test_a_container_can_do_little(name: str, compose: Compose) -> None:
    """Not root, nothing to write but volumes and /tmp, no capabilities, none to gain, bounded in every way."""
    raw = compose.services[name].raw
    assert raw["read_only"] is True
    assert raw["cap_drop"] == ["ALL"]
    assert raw["security_opt"] == ["no-new-privileges:true"]
    assert raw["logging"]["options"].keys() == {"max-size", "max-file"}
    limits = raw["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= limits.keys()
    if name == _CHOWNS:
        assert (raw["user"], raw["cap_add"], raw["network_mode"]) == ("0:0", ["CHOWN"], "none")
    else:
        assert not raw["user"].startswith("0")
        assert "cap_add" not in raw
    assert not {"privileged", "network_mode", "container_name", "env_file", "pid", "devices"} & raw.keys() - {
        "network_mode" if compose.services[name].is_one_shot else ""
    }


@pytest.mark.parametrize("name", _long_running())
def test_a_service_tells_its_health_and_comes_back(name: str, compose: Compose) -> None:
    """A health check without a shell, a restart, and time to finish."""
    service = compose.services[name]
    assert service.health is not None
    assert service.raw["restart"] == "unless-stopped"
    assert "stop_grace_period" in service.raw


def test_images_are_pinned(compose: Compose) -> None:
    """Every image names a version, and what the collector's image is built from too."""
    images = [service.image for service in compose.services.values()]
    built = compose.services["otel-collector"].raw["build"]["dockerfile_inline"]
    images += re.findall(r"FROM (\S+)", built)
    for dockerfile in sorted((_ROOT / "deploy").glob("*.Dockerfile")):
        images += re.findall(r"^FROM (\S+)", dockerfile.read_text(), flags=re.MULTILINE)
    assert [image for image in images if not _PINNED.match(image)] == []


def test_roles_are_healthy_when_they_work(compose: Compose) -> None:
    """Every process of Headgate is asked whether it is ready, where it listens."""
    roles = [service for service in compose.services.values() if service.command[:2] == ("headgate", "run")]
    assert {service.command[2] for service in roles} == {"gateway", "admission", "scheduler", "worker", "ledger"}
    for service in roles:
        assert service.health is not None
        url = f"http://localhost:{service.environment['HEADGATE_OPS_PORT']}"
        assert service.health.test == ("headgate", "health", "--ready", "--url", url)


def test_secrets_reach_a_role_as_files_and_no_more_than_it_needs(compose: Compose) -> None:
    """No secret is in an environment; a role's NATS user is its own; only gateways have the keys' secrets."""
    for service in compose.services.values():
        for name, value in service.environment.items():
            if name.endswith("_FILE"):
                assert value.removeprefix("/run/secrets/") in service.secrets
            else:
                assert not re.search("PASSWORD|PEPPER|SALT|KEY|TOKEN", name), f"{service.name}: {name}"
        if service.command[:2] == ("headgate", "run"):
            role = service.command[2]
            assert service.environment["HEADGATE_NATS"] == f"nats://{role}@nats:4222"
            assert service.environment["HEADGATE_NATS_PASSWORD_FILE"] == f"/run/secrets/nats-{role}"
        assert service.name.startswith("gateway") or not {"admin-key", "pepper", "cache-salt"} & set(service.secrets)


def test_two_ports_are_published_and_that_of_operators_on_loopback(compose: Compose) -> None:
    """One for clients, one for operators, both of the proxy."""
    ports = {service.name: service.raw["ports"] for service in compose.services.values() if "ports" in service.raw}
    assert ports == {"proxy": ["0.0.0.0:8080:8080", "127.0.0.1:8081:8081"]}


def test_only_the_proxy_is_on_a_network_with_a_way_out(compose: Compose) -> None:
    """All other networks are internal."""
    open_networks = {name for name, network in compose.networks.items() if not (network or {}).get("internal")}
    assert open_networks == {"edge"}
    assert [s.name for s in compose.services.values() if open_networks & set(s.raw.get("networks", ()))] == ["proxy"]


def test_prometheus_finds_every_process_by_one_name(compose: Compose) -> None:
    """Whatever the profile, so that no name is asked for that is not there."""
    members = compose.members("ha", "gpu")["processes"]
    assert set(members) == {s.name for s in compose.services.values() if s.command[:2] == ("headgate", "run")}
    shipped = YAML(typ="safe", pure=True).load(_ROOT / "deploy" / "prometheus" / "prometheus.yml")
    (job,) = (job for job in shipped["scrape_configs"] if job["job_name"] == "headgate")
    assert job["dns_sd_configs"][0]["names"] == ["processes"]


def test_start_order_is_by_health(compose: Compose) -> None:
    """What runs on is waited for until it is healthy, what runs once until it has succeeded."""
    for service in compose.services.values():
        for other, condition in service.depends_on.items():
            one_shot = compose.services[other].is_one_shot
            assert condition == ("service_completed_successfully" if one_shot else "service_healthy"), service.name
    ordered = list(compose.selected())
    assert ordered.index("nats") < ordered.index("ledger") < ordered.index("gateway") < ordered.index("proxy")


def test_the_profile_ha_has_a_second_of_everything_that_decides(compose: Compose) -> None:
    """Three NATS servers, two gateways, and standbys that are like the first ones."""
    ha = {name for name, service in compose.services.items() if service.profiles == ("ha",)}
    assert ha == {"nats-2", "nats-3", "gateway-2", "admission-standby", "scheduler-standby"}
    for name, first in (
        ("gateway-2", "gateway"),
        ("admission-standby", "admission"),
        ("scheduler-standby", "scheduler"),
    ):
        assert _without(compose.services[name], "profiles", "networks") == _without(
            compose.services[first], "profiles", "networks"
        )
    for name in ("nats-2", "nats-3"):
        assert compose.services[name].raw["networks"]["core"]["aliases"] == ["nats"]


def test_the_profile_gpu_reserves_a_device(compose: Compose) -> None:
    """Through the NVIDIA runtime, with the image that has CUDA."""
    gpu = compose.services["worker-gpu"]
    assert gpu.profiles == ("gpu",)
    assert gpu.environment["HEADGATE_DEVICE"] == "cuda"
    devices = gpu.raw["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert gpu.image.endswith("-cuda")


def test_what_a_role_may_take_to_drain_is_less_than_what_it_gets(compose: Compose) -> None:
    """The engine's grace is longer than the drain, or a stream would be cut by SIGKILL."""
    grace = {
        name: seconds(service.raw["stop_grace_period"])
        for name, service in compose.services.items()
        if not service.is_one_shot
    }
    assert grace["gateway"] > float(compose.services["gateway"].environment["HEADGATE_DRAIN_S"])
    hard_stop = re.search(r"hard-stop-after (\d+)s", (_ROOT / "deploy/haproxy/haproxy.cfg").read_text())
    assert hard_stop is not None
    assert grace["proxy"] > float(hard_stop[1])


def test_the_build_context_has_no_secret_and_no_history() -> None:
    """.dockerignore lets in what images are built from, by name, and nothing else."""
    lines = [line for line in (_ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    packages = {path.parent.name for path in _ROOT.glob("*/__init__.py")} - {"deploy", "benchmarks", "tests"}
    assert allowed == packages | {"pyproject.toml", "README.md", "deploy/requirements.py"}


def test_secrets_are_not_in_the_history() -> None:
    """Their directory ignores everything that is put there."""
    assert (_ROOT / "deploy" / "secrets" / ".gitignore").read_text().splitlines()[-2:] == ["*", "!.gitignore"]
    assert ".env" in (_ROOT / ".gitignore").read_text().splitlines()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _without(service: Service, *names: str) -> dict[str, Any]:
    return {name: value for name, value in service.raw.items() if name not in names}
