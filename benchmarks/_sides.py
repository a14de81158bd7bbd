"""What a control-plane benchmark runs against: a Headgate stack on the mock device, LiteLLM's proxy, a fake backend.

Each is a context manager with `pids`, so that all of its processes can be given the same cores and weighed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks._fake_backend import MODEL

__all__ = ["FakeBackend", "Headgate", "LiteLLM", "pin"]

_ROOT = Path(__file__).resolve().parent.parent
_LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{port}/v1", api_key: sk-none}}
litellm_settings: {{telemetry: false, set_verbose: false}}
general_settings: {{master_key: "{key}"}}
"""


def pin(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Give every thread of these processes these cores and no others."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), set(cpus))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


class _Side:
    """A process and its children, from `__enter__` to `__exit__`."""

    name: str
    path = "/v1/chat/completions"
    key = "sk-none"
    model = MODEL
    port: int

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.log = self._scratch / f"{self.name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=_ROOT, env={**os.environ, **(environment or {})}, stdout=log, stderr=log
            )

    def _await(self, url: str, *, seconds: float) -> None:
        """Until it answers with 200.

        :raises RuntimeError: it ended, or took longer than that.
        """
        until = time.monotonic() + seconds
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), opener.open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start; the end of {self.log}:\n{self.log.read_text()[-2000:]}")

    @property
    def pids(self) -> list[int]:
        assert self._process is not None
        return family(self._process.pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class FakeBackend(_Side):
    """See `_fake_backend`."""

    name = "backend"

    def __enter__(self) -> Self:
        self.port = free_port()
        self._start([sys.executable, "-m", "benchmarks._fake_backend", str(self.port)])
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.05)
        raise RuntimeError("the fake backend did not start")


class LiteLLM(_Side):
    """LiteLLM's proxy in front of a backend: `executable` is its venv's `bin/litellm`, or that venv's Python."""

    name = "litellm"

    def __init__(self, scratch: Path, *, executable: Path, backend: FakeBackend, workers: int = 1) -> None:
        super().__init__(scratch)
        self._executable = executable
        self._backend = backend
        self._workers = workers
        self.key = "sk-" + secrets.token_hex(24)

    def __enter__(self) -> Self:
        self.port = free_port()
        config = self._scratch / "litellm.yaml"
        config.write_text(_LITELLM_CONFIG.format(model=MODEL, port=self._backend.port, key=self.key))
        binary = self._executable if self._executable.name == "litellm" else self._executable.parent / "litellm"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--num_workers", str(self._workers)]
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
        self._start([str(binary), "--config", str(config), *options], environment)
        self._await(f"http://127.0.0.1:{self.port}/health/liveliness", seconds=120)
        return self

    def version(self) -> str:
        python = self._executable.parent / "python"
        code = "from importlib.metadata import version; print(version('litellm'))"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class Headgate(_Side):
    """`headgate serve` with a mock device whose steps take `step_ms`, and one tenant without limits.

    `options` are more of its options, `environment` more variables.
    """

    name = "headgate"

    def __init__(
        self,
        scratch: Path,
        *,
        step_ms: float,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scratch)
        self._data = scratch / "data"
        self._options = list(options)
        self._environment = dict(environment or {})
        self.step_ms = step_ms

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "headgate", "serve", "--data", str(self._data)]
        command += ["--port", "0", "--admin-port", "0", "--device", "mock", "--mock-step-ms", str(self.step_ms)]
        self._start([*command, *self._options], self._environment)
        endpoints = self._data / "endpoints.json"
        until = time.monotonic() + 60
        while not endpoints.exists() and time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        if not endpoints.exists():
            raise RuntimeError(f"the stack did not start; the end of {self.log}:\n{self.log.read_text()[-2000:]}")
        found = json.loads(endpoints.read_text())
        self.port = int(found["api"].rpartition(":")[2])
        self.model = found["model"]
        self._admin = found["admin"]
        self._api = found["api"]
        self._await(f"{self._api}/ready", seconds=30)
        self.ask("POST", "tenants", {"name": "bench", "tier": "default"})
        self.key = self.ask("POST", "keys", {"tenant": "bench"})["key"]
        return self

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to the admin API."""
        key = (self._data / "admin.key").read_text().strip()
        request = urllib.request.Request(
            f"{self._admin}/admin/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def settled(self, *, requests: int, seconds: float = 15.0) -> tuple[int, int]:
        """(requests, output tokens) in the ledger, once it has folded as many requests, or after a while."""
        until = time.monotonic() + seconds
        while True:
            rows = self.ask("GET", "usage?by=tenant")["usage"]
            settled = sum(row["requests"] for row in rows), sum(row["output_tokens"] for row in rows)
            if settled[0] >= requests or time.monotonic() > until:
                return settled
            time.sleep(0.3)

    def metrics(self) -> str:
        """The text of /metrics: of all processes, up to two seconds old."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self._api}/metrics", timeout=5) as answer:
            return str(answer.read(), "utf-8")

    def processes(self) -> dict[str, int]:
        """Process ids by role."""
        state = json.loads((self._data / "stack.json").read_text())
        found = {"supervisor": int(state["supervisor_pid"])}
        return found | {f"{p['role']}.{p['instance']}": int(p["pid"]) for p in state["processes"]}
