"""`headgate tenants`, `keys` and `usage` against the real admin application on a real socket; buckets in memory."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from actors.messages import AuditQuery, AuditRows, Decision, UsageQuery, UsageRow, UsageRows
from actors.runtime.errors import NoRoute
from actors.runtime.memory_store import MemoryBucket
from gateway.admin import AdminSources, admin_app
from gateway.directory import Directory
from gateway.errors import Unauthorized
from gateway.secrets import load_secrets
from gateway.tenancy import Tenancy
from headgate.__main__ import main
from policies.vocabulary import Request, StepTimeCoefficients, WorkerLoad


class Stack:
    """An admin port on loopback, served by a thread until `stop`; its data directory is what `serve` leaves."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.queries: list[UsageQuery] = []
        self.workers: list[WorkerLoad] = []
        self.ledger_is_away = False
        self._secrets = load_secrets(data, environ={})
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(30)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        tenants, keys = MemoryBucket(), MemoryBucket()
        pepper = self._secrets.pepper
        self.directory = Directory(tenants, keys, pepper=pepper, salt_secret=self._secrets.cache_salt)
        await self.directory.start()
        app = admin_app(
            admin_key=self._secrets.admin_key,
            tenancy=Tenancy(tenants, keys, self.directory, pepper=pepper, audit=self._audited),
            directory=self.directory,
            sources=AdminSources(
                usage=self._usage, audit=self._audit, explain=self._explain, workers=lambda: self.workers
            ),
        )
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        # Listening before anybody is told the port: a client that is early waits in the backlog.
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (self.data / "endpoints.json").write_text(json.dumps({"api": "http://127.0.0.1:1", "admin": self.url}))
        self._started.set()
        await self._server.serve(sockets=[listener])
        await self.directory.stop()

    async def _audited(self, payload: bytes, message_id: str) -> None:
        pass

    async def _usage(self, query: UsageQuery) -> UsageRows:
        if self.ledger_is_away:
            raise NoRoute("nobody listens on hg.v1.ledger.any")
        self.queries.append(query)
        return UsageRows([UsageRow("acme", "2026-11-20", "k1", "", 2, 1_000, 20, 3, 1)])

    async def _audit(self, query: AuditQuery) -> AuditRows:
        return AuditRows([])

    async def _explain(self, request: Request) -> Decision:
        return Decision(outcome="admitted")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("data"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADGATE_DATA", "HEADGATE_ADMIN_URL", "HEADGATE_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="headgate")


def _json(stack: Stack, *arguments: str) -> Any:
    result = _run(*arguments, "--data", str(stack.data), "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _refused(*arguments: str) -> str:
    result = _run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def _worker(name: str, steps: int, per_token_s: float) -> WorkerLoad:
    fit = StepTimeCoefficients(0.01, 0.006, per_token_s, 1e-9, 5e-8, 2e-5)
    return WorkerLoad(name, "m", 64, 60, 8, 7, 256, 1024, fit, 1.0, 1.1, 1.2, [], "cpu", 32, 4096, 1e9, steps)


def test_a_device_file_is_what_the_worker_told(stack: Stack, tmp_path: Path) -> None:
    """Of several workers the one whose fit has seen most, or the one that is named; every figure of it, by name."""
    stack.workers = [_worker("w1", 20, 3e-5), _worker("w2", 9000, 4e-5)]
    path = tmp_path / "m.toml"
    told = _json(stack, "profile", "--output", str(path))
    device = told["device"]
    assert (told["steps_timed"], told["ratios"]["p90"], told["file"]) == (9000, 1.1, str(path))
    assert device.items() >= {"name": "m-cpu", "blocks": 64, "host_blocks": 32, "slots": 8, "max_context": 1024}.items()
    assert (device["block_bytes"], device["swap_bytes_per_s"]) == (4096, 1e9)
    assert list(device["step_time"].values()) == [0.01, 0.006, 4e-5, 1e-9, 5e-8, 2e-5]
    assert tomllib.loads(path.read_text()) == device
    named = _json(stack, "profile", "--worker", "w1", "--output", str(path))
    assert named["device"]["step_time"]["per_token_s"] == 3e-5
    assert "9,000 steps" not in path.read_text()
    few = _run("profile", "--worker", "w1", "--output", str(path), "--data", str(stack.data))
    assert "Only 20 steps" in few.stderr
    assert "no worker 'w3': it has w1, w2" in _refused("profile", "--worker", "w3", "--data", str(stack.data))


def test_a_tenant_is_created_changed_shown_listed_and_deleted(stack: Stack) -> None:
    """Every option reaches the store, and `none` takes it away again."""
    expected: dict[str, object] = {
        "tier": "priority",
        "ttft_ms": 500,
        "ttft_per_1k_ms": 250,
        "tpot_ms": 50,
        "attainment": 0.95,
        "weight": 4,
        "rpm": 600,
        "tpm": 200_000,
        "concurrency": 32,
        "daily_tokens": 20_000_000,
        "group": "both",
    }
    options = [text for name, value in expected.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    created = _json(stack, "tenants", "create", "acme", *options)
    assert created.items() >= expected.items()
    changed = _json(stack, "tenants", "set", "acme", "--ttft-ms", "300", "--rpm", "none", "--group", "none")
    assert changed.items() >= (expected | {"name": "acme", "ttft_ms": 300, "rpm": None, "group": None}).items()
    assert _json(stack, "tenants", "show", "acme") == changed
    assert [tenant["name"] for tenant in _json(stack, "tenants", "list")] == ["acme"]
    assert _json(stack, "tenants", "delete", "acme")["deleted"]
    assert _json(stack, "tenants", "list") == []


def test_a_key_is_created_used_rotated_and_revoked(stack: Stack) -> None:
    """`keys create --json` has `id` and `key`; the key opens the stack, until its revocation."""
    _json(stack, "tenants", "create", "keyed")
    made = _json(stack, "keys", "create", "keyed", "--expires", "30d", "--models", "a, b", "--tier-ceiling", "flex")
    assert made.items() >= {"tenant": "keyed", "models": ["a", "b"], "tier_ceiling": "flex", "state": "active"}.items()
    assert made["expires"] is not None
    assert stack.directory.authenticate(f"Bearer {made['key']}").key_id == made["id"]

    turned = _json(stack, "keys", "rotate", made["id"], "--grace", "0")
    assert turned["id"] == made["id"]
    with pytest.raises(Unauthorized, match="rotated"):
        stack.directory.authenticate(f"Bearer {made['key']}")
    assert stack.directory.authenticate(f"Bearer {turned['key']}").tenant.name == "keyed"

    listed = _json(stack, "keys", "list", "--tenant", "keyed")
    assert [key["id"] for key in listed] == [made["id"]]
    assert "key" not in listed[0]
    assert _json(stack, "keys", "revoke", made["id"])["state"] == "revoked"
    with pytest.raises(Unauthorized, match="revoked"):
        stack.directory.authenticate(f"Bearer {turned['key']}")


def test_people_get_tables_and_the_key_on_stdout_alone(stack: Stack) -> None:
    """The remark that it is not shown again is on stderr, so that a script can read the rest."""
    data = ("--data", str(stack.data))
    assert _run("tenants", "create", "shown", "--rpm", "6000", *data).exit_code == 0
    made = _run("keys", "create", "shown", *data)
    assert made.stdout.split()[:1] == ["key"]
    assert made.stdout.split()[1].startswith("sk-hg-")
    assert "not shown again" in made.stderr
    table = _run("tenants", "list", *data).stdout.splitlines()
    assert table[0].startswith("tenant")
    assert any(line.startswith("shown ") and "6,000" in line for line in table)
    assert "sk-hg-" not in _run("keys", "list", *data).stdout
    assert "shown" in _run("tenants", "show", "shown", *data).stdout
    assert "Deleted shown; 1 of its keys" in _run("tenants", "delete", "shown", *data).stderr


def test_usage_passes_its_filters_on(stack: Stack) -> None:
    """As JSON and as a table with sums."""
    rows = _json(stack, "usage", "--tenant", "acme", "--since", "2026-11-01", "--until", "2026-11-20", "--by", "day")
    assert rows[0].items() >= {"tenant": "acme", "requests": 2, "prompt_tokens": 1000}.items()
    assert stack.queries[-1] == UsageQuery(tenant="acme", since="2026-11-01", until="2026-11-20", by="day")
    table = _run("usage", "--by", "day", "--data", str(stack.data)).stdout
    assert "2026-11-20" in table
    assert "1,000" in table


def test_what_the_stack_refuses_is_one_line_and_exit_code_1(stack: Stack) -> None:
    """With the stack's own words."""
    data = ("--data", str(stack.data))
    assert "no tenant 'nobody'" in _refused("tenants", "show", "nobody", *data)
    assert "no tenant 'nobody'" in _refused("keys", "create", "nobody", *data)
    assert "Not Found" in _refused("keys", "revoke", "../tenants/acme", *data)
    assert "`ttft_ms`" in _refused("tenants", "create", "bad", "--ttft-ms", "-5", *data)
    assert "flex has no contract" in _refused("tenants", "create", "bad", "--tier", "flex", "--ttft-ms", "5", *data)
    assert "which is over" in _refused("keys", "create", "nobody", "--expires", "2020-01-01", *data)
    assert "nothing to change" in _refused("tenants", "set", "nobody", *data)


def test_a_part_that_is_away_is_said_to_be_so(stack: Stack) -> None:
    """Not a traceback, not a table with nothing in it."""
    stack.ledger_is_away = True
    try:
        assert "does not answer" in _refused("usage", "--data", str(stack.data))
    finally:
        stack.ledger_is_away = False


def test_no_stack_is_said_to_be_none(stack: Stack, tmp_path: Path) -> None:
    """For a directory that never had one, and for one whose stack has ended."""
    assert f"no stack is running for --data {tmp_path}: start one with `headgate serve`" in _refused(
        "tenants", "list", "--data", str(tmp_path)
    )
    (tmp_path / "admin.key").write_text("sk-hg-admin-whatever")
    (tmp_path / "endpoints.json").write_text('{"api": "http://127.0.0.1:9", "admin": "http://127.0.0.1:9"}')
    assert "no stack is running" in _refused("keys", "list", "--data", str(tmp_path))


def test_a_stack_elsewhere_is_found_by_url_and_key(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEADGATE_ADMIN_URL and HEADGATE_ADMIN_KEY need no data directory; proxies of the environment are not asked."""
    monkeypatch.setenv("HEADGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HEADGATE_ADMIN_URL", stack.url + "/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert "admin.key is missing" in _refused("tenants", "list")
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", (stack.data / "admin.key").read_text())
    assert _run("tenants", "list").exit_code == 0
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", "sk-hg-admin-wrong")
    assert f"{stack.url} does not take the admin key of HEADGATE_ADMIN_KEY" in _refused("tenants", "list")
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", "schlüssel")
    assert "HEADGATE_ADMIN_KEY does not hold an admin key" in _refused("tenants", "list")
    monkeypatch.delenv("HEADGATE_ADMIN_KEY")
    monkeypatch.setenv("HEADGATE_ADMIN_KEY_FILE", str(tmp_path / "nowhere"))
    assert "nowhere is missing" in _refused("tenants", "list")
    monkeypatch.setenv("HEADGATE_ADMIN_KEY", (stack.data / "admin.key").read_text())
    assert "not a URL" in _refused("tenants", "list", "--admin-url", "http://host:port")
    assert "no stack answers at http://127.0.0.1:9" in _refused("tenants", "list", "--admin-url", "http://127.0.0.1:9")


@pytest.mark.parametrize("content", ["{", "[]", '{"api": 1}'])
def test_an_endpoints_file_that_is_broken_is_named(stack: Stack, tmp_path: Path, content: str) -> None:
    """Rather than guessing a port."""
    (tmp_path / "endpoints.json").write_text(content)
    assert "endpoints.json cannot be read" in _refused("tenants", "list", "--data", str(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ["tenants", "create", "a", "--ttft-ms", "soon"],
        ["tenants", "create", "a", "--rpm", "1.5"],
        ["tenants", "create", "a", "--tier", "gold"],
        ["keys", "create", "a", "--expires", "soon"],
        ["keys", "rotate", "a", "--grace", "-1h"],
        ["usage", "--since", "yesterday"],
        ["usage", "--by", "hour"],
        ["usage", "--since", "2026-12-01", "--until", "2026-01-01"],
        ["top", "--json"],
        ["run", "gateway", "--port", "99999"],
        ["run", "gateway", "--sample-ratio", "2"],
        ["serve", "--workers", "0"],
        ["serve", "--admin-port", "99999"],
        ["nonsense"],
    ],
)
def test_a_command_line_that_is_wrong_ends_with_2_and_the_option(arguments: list[str]) -> None:
    """Before anything is asked of a stack."""
    result = _run(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.stderr
