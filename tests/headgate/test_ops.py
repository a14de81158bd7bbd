"""The ops port without a stack: what readiness says when, and the health check that asks for it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from headgate.__main__ import main
from headgate.errors import HeadgateError
from headgate.nats.address import login_of, open_transport, read_secret
from headgate.ops import ops_port
from headgate.readiness import Readiness


class Stage:
    """A process that is what a test says."""

    def __init__(self, role: str = "gateway") -> None:
        self.readiness = Readiness(role, "x0")
        self.is_connected = True
        self.reasons: list[str] = []
        self.readiness.connected_by(lambda: self.is_connected)
        self.readiness.check(lambda: self.reasons)

    def said(self) -> tuple[str, bool, list[str]]:
        report = self.readiness.report()
        return report.state, report.is_ready, report.reasons


def test_a_process_is_ready_when_its_actor_receives_and_nothing_is_wrong() -> None:
    """On the way there it says what it is at, afterwards what is wrong, at the end that it drains."""
    stage = Stage()
    assert stage.said() == ("starting", False, ["connecting to NATS"])
    stage.readiness.starts("loading the model: 40%")
    assert stage.said() == ("starting", False, ["loading the model: 40%"])
    stage.readiness.waits()
    assert stage.said() == ("starting", False, ["waiting for its lease"])
    stage.readiness.serves()
    assert stage.said() == ("ready", True, [])
    stage.reasons = ["no worker"]
    assert stage.said() == ("not ready", False, ["no worker"])
    stage.is_connected = False
    assert stage.said() == ("not ready", False, ["not connected to NATS", "no worker"])
    stage.readiness.drains()
    assert stage.said()[:2] == ("draining", False)


@pytest.mark.parametrize("role", ["scheduler", "admission"])
def test_who_waits_for_a_lease_stands_by_and_that_is_well(role: str) -> None:
    """Of the roles of which one works; but not without a connection, for it could not take over."""
    stage = Stage(role)
    stage.readiness.waits()
    assert stage.said() == ("standby", True, [])
    stage.is_connected = False
    assert stage.said() == ("not ready", False, ["not connected to NATS"])


@pytest.fixture
async def served() -> AsyncIterator[tuple[Stage, str]]:
    stage = Stage()
    metrics = (b"headgate_up 1\n", "text/plain; version=0.0.4")
    async with ops_port("127.0.0.1", 0, report=stage.readiness.report, metrics=lambda accept: metrics) as port:
        yield stage, f"http://127.0.0.1:{port}"


async def test_it_answers_health_readiness_and_metrics(served: tuple[Stage, str]) -> None:
    """Health is 200 whatever readiness says; the body of /ready says why not."""
    stage, url = served
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        assert (await http.get("/health")).status_code == 200
        answer = await http.get("/ready")
        assert answer.status_code == 503
        assert answer.json() == {
            "role": "gateway",
            "instance": "x0",
            "state": "starting",
            "reasons": ["connecting to NATS"],
        }
        stage.readiness.serves()
        assert (await http.get("/ready")).json()["state"] == "ready"
        metrics = await http.get("/metrics")
        assert metrics.text == "headgate_up 1\n"
        assert metrics.headers["content-type"] == "text/plain; version=0.0.4"


async def test_the_health_check_tells_by_its_exit_code(
    served: tuple[Stage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reasons are on stderr; the address comes from the option or from the environment."""
    stage, url = served

    def asked(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["health", *arguments])
        return result.exit_code, result.stderr

    assert await asyncio.to_thread(asked, "--url", url) == (0, "")
    assert await asyncio.to_thread(asked, "--ready", "--url", url) == (1, "starting: connecting to NATS\n")
    stage.readiness.serves()
    monkeypatch.setenv("HEADGATE_OPS_PORT", url.rpartition(":")[2])
    assert await asyncio.to_thread(asked, "--ready") == (0, "")
    code, words = await asyncio.to_thread(asked, "--url", "http://127.0.0.1:1")
    assert (code, "refused" in words) == (1, True)
    monkeypatch.delenv("HEADGATE_OPS_PORT")
    code, words = await asyncio.to_thread(asked)
    assert (code, "HEADGATE_OPS_PORT" in words) == (2, True)


@pytest.mark.parametrize("url", ["foo", "http://", "http://host:abc", "http://host:99999", "http://[::1"])
def test_an_address_that_is_none_is_a_wrong_command_line(url: str) -> None:
    """Exit code 2 and the value, not the 1 of a process that is not well."""
    result = CliRunner().invoke(main, ["health", "--url", url])
    assert (result.exit_code, url in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--nats", "foo"),
        ("--nats", "nats://a:pass@b:port"),
        ("--nats", "nats://a:1,http://pass@b"),
        ("--ledger", "mysql://a:pass@b"),
        ("--ledger", "postgresql://a:pass@b:port/c"),
    ],
)
def test_an_address_of_a_server_is_checked_before_anything_starts(option: str, value: str) -> None:
    """Its password is not repeated."""
    arguments = ["run", "ledger", "--nats", "nats://a:1", option, value]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, option in result.stderr, "pass@" in result.stderr) == (2, True, False), result.stderr


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """One line and exit code 1, of `run` and of `serve`."""
    (tmp_path / "file").write_text("")
    for arguments in (["run", "ledger", "--nats", "nats://a:1"], ["serve", "--port", "0", "--admin-port", "0"]):
        result = CliRunner().invoke(main, [*arguments, "--data", str(tmp_path / "file")])
        assert (result.exit_code, str(tmp_path / "file") in result.stderr) == (1, True), result.stderr
        assert result.stderr.count("\n") == 1


async def test_a_port_that_is_taken_is_named() -> None:
    """It does not end the process behind the back of who asked for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HeadgateError, match=f"port {port} on 127.0.0.1 cannot be listened on"):
            async with ops_port("127.0.0.1", port, report=Stage().readiness.report, metrics=lambda accept: (b"", "")):
                pass


def test_the_health_check_loads_next_to_nothing() -> None:
    """It runs every few seconds in every container."""
    program = (
        "import sys, headgate.commands.health\n"
        "heavy = {'httpx', 'msgspec', 'nats', 'starlette', 'structlog', 'uvicorn', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_user_and_password_come_apart_from_a_url() -> None:
    """Of several servers too; what is left names nobody."""
    assert login_of("nats://worker@n1:4222,nats://worker@n2:4222") == ("worker", "nats://n1:4222,nats://n2:4222")
    assert login_of("nats://a%40b:x@n1:4222") == ("a@b", "nats://n1:4222")
    assert login_of("nats://n1:4222") == ("", "nats://n1:4222")
    with pytest.raises(HeadgateError, match="names no user"):
        open_transport("nats://n1:4222", password="x")


def test_a_secret_file_that_cannot_be_read_is_named_and_never_shown() -> None:
    """Missing or empty; where none is named there is no secret."""
    assert read_secret("", of="--x") is None
    with pytest.raises(HeadgateError, match="--x: /nowhere/at/all cannot be read"):
        read_secret("/nowhere/at/all", of="--x")
    with pytest.raises(HeadgateError, match="is empty"):
        read_secret("/dev/null", of="--x")


def test_options_of_run_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are wrong are refused with the name of the option."""
    monkeypatch.setenv("HEADGATE_DEVICE", "abacus")
    refused = CliRunner().invoke(main, ["run", "worker"])
    assert (refused.exit_code, "--device" in refused.stderr) == (2, True)
    monkeypatch.setenv("HEADGATE_DEVICE", "mock")
    refused = CliRunner().invoke(main, ["run", "worker"])
    assert (refused.exit_code, "--nats" in refused.stderr) == (2, True)
    monkeypatch.setenv("HEADGATE_NATS", "nats://127.0.0.1:1")
    monkeypatch.setenv("HEADGATE_LEDGER", "mysql://x")
    refused = CliRunner().invoke(main, ["run", "ledger"])
    assert (refused.exit_code, "postgresql://" in refused.stderr) == (2, True)


def test_the_health_check_is_quick() -> None:
    """A whole process of it, start to end, in a fraction of the interval of any orchestrator."""
    command = [sys.executable, "-m", "headgate", "health", "--url", "http://127.0.0.1:1"]
    best = 10.0
    for _ in range(5):
        began = time.monotonic()
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 1
        best = min(best, time.monotonic() - began)
    assert best < 0.3
