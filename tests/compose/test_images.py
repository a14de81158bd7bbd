"""What the Dockerfiles build, as far as that can be known without a container engine."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deploy.image_size import PACKAGES, libraries, total_bytes
from deploy.rehearsal.image import write_import_guard
from deploy.requirements import LEFT_OUT, REMOVED, pins

_ROOT = Path(__file__).resolve().parent.parent.parent
_GATEWAY = _ROOT / "deploy" / "gateway.Dockerfile"
_WORKER = _ROOT / "deploy" / "worker.Dockerfile"

#: What the gateway's image runs, with what it imports late.
_IMPORT_ROLES = """
for role in ("gateway", "admission", "scheduler", "ledger"):
    __import__(f"headgate.roles.{role}")
for command in ("run", "health", "secrets", "tenants", "keys", "usage", "trace", "top", "audit"):
    __import__(f"headgate.commands.{command}")
import opentelemetry.exporter.otlp.proto.http.trace_exporter, headgate.process, headgate.ops, actors.ledger_postgres
import psycopg_binary
"""


def test_the_gateways_image_is_small() -> None:
    """At most 250 MB uncompressed: base image, libraries as they are installed, and our own packages."""
    assert total_bytes() <= 250_000_000


def test_no_engine_is_in_the_gateways_image() -> None:
    """Neither torch nor anything that comes with it."""
    assert not {"torch", "numpy", "numba", "triton", "safetensors", "llvmlite", "matplotlib"} & libraries().keys()


def test_every_role_of_the_gateways_image_finds_its_libraries_there(tmp_path: Path) -> None:
    """They import with nothing but what the image has, which is less than what is installed here."""
    write_import_guard(tmp_path / "image")
    assert "not in the image" in _run_guarded(tmp_path, "import torch")
    assert _run_guarded(tmp_path, _IMPORT_ROLES) == ""


def _run_guarded(directory: Path, code: str) -> str:
    """What it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(directory / "image")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stderr


def test_a_worker_on_a_cpu_needs_no_triton() -> None:
    """The worker's image for CPUs is built without it."""
    code = "import sys; sys.modules['triton'] = None; import headgate.roles.worker, gpu_worker.cpu"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_pins_are_those_of_the_project_without_what_is_left_out() -> None:
    """An extra adds its own; a name that does not exist is an error."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    left = [pin for pin in project["dependencies"] if not pin.startswith(LEFT_OUT)]
    assert pins(_ROOT / "pyproject.toml") == left
    assert pins(_ROOT / "pyproject.toml", extra="worker") == left + project["optional-dependencies"]["worker"]
    with pytest.raises(KeyError):
        pins(_ROOT / "pyproject.toml", extra="no-such")


def test_what_is_measured_is_what_the_wheel_has() -> None:
    """The packages of the computation are those of the build."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    assert list(PACKAGES) == project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.mark.parametrize("dockerfile", [_GATEWAY, _WORKER], ids=lambda path: path.stem)
def test_an_image_is_built_in_stages_and_runs_as_nobody_special(dockerfile: Path) -> None:
    """The last stage has no build tools of ours and a user by number, which engines can see is not root."""
    text = dockerfile.read_text()
    last = text.rpartition("\nFROM ")[2]
    assert text.count("\nFROM ") == 2
    assert "\nUSER 10001:10001\n" in last
    assert "COPY --from=build /opt/headgate /opt/headgate" in last
    assert ".git" not in text


def test_the_build_does_not_ask_the_history() -> None:
    """The version is written down, so that hatchling needs no repository."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())
    assert project["project"]["version"]
    assert "dynamic" not in project["project"]
    assert "version" not in project["tool"]["hatch"]
    assert project["build-system"]["requires"] == [
        pin for pin in project["build-system"]["requires"] if "vcs" not in pin
    ]


def test_the_gateways_image_removes_what_the_computation_leaves_out() -> None:
    """The Dockerfile uninstalls exactly what `requirements.py --removed` prints."""
    done = subprocess.run(
        [sys.executable, _ROOT / "deploy" / "requirements.py", "--removed"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(REMOVED)
    assert "requirements.py --removed" in _GATEWAY.read_text()
    assert "requirements.py pyproject.toml --extra postgres >" in _GATEWAY.read_text()
    assert "requirements.py pyproject.toml --extra worker |" in _WORKER.read_text()
