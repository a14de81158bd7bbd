"""The stack by its commands: starting, looking, stopping; and nothing is left behind, however it ends."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack_support import BACK_S, Stack, Tenant, counting, eventually, has_ended, headgate, resident_kib

from simulator.devices import load_device

_ROLES = ["nats", "ledger", "admission", "scheduler", "worker", "gateway"]

#: Of gateway.md: what every dashboard may count on.
_METRICS = [
    "gen_ai_server_time_to_first_token_seconds",
    "gen_ai_server_time_per_output_token_seconds",
    "gen_ai_server_request_duration_seconds",
    "headgate_requests",
    "headgate_admission_decisions",
    "headgate_sla_attained",
    "headgate_sla_eligible",
    "headgate_prediction_error_ratio",
    "headgate_queue_seconds",
    "headgate_retry_after_seconds",
    "headgate_overhead_seconds",
    "headgate_preemptions",
    "headgate_preempt_lost_tokens",
    "headgate_kv_blocks",
    "headgate_prefix_hit_tokens",
    "headgate_step_seconds",
    "headgate_tenant_service_tokens",
    "headgate_mailbox_refused",
    "headgate_ledger_unsettled",
]


def run_json(stack: Stack, *arguments: str) -> object:
    """What a command prints with --json."""
    done = headgate(*arguments, "--data", str(stack.data), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_against_the_running_stack(stack: Stack) -> None:
    """A person's first day: ps, a tenant, a key, its rotation and revocation, usage; all with --json."""
    rows = run_json(stack, "ps")
    assert [row["role"] for row in rows] == _ROLES  # type: ignore[attr-defined]
    assert all({"role", "instance", "pid", "epoch", "state"} <= set(row) for row in rows)  # type: ignore[attr-defined]
    made = run_json(stack, "tenants", "create", "shop", "--tier", "priority", "--ttft-ms", "800", "--rpm", "100")
    assert made["ttft_ms"] == 800  # type: ignore[index]
    run_json(stack, "tenants", "set", "shop", "--ttft-ms", "700", "--rpm", "none")
    shown = run_json(stack, "tenants", "show", "shop")
    assert (shown["ttft_ms"], shown["rpm"]) == (700, None)  # type: ignore[index]
    assert "shop" in {row["name"] for row in run_json(stack, "tenants", "list")}  # type: ignore[attr-defined]
    key = run_json(stack, "keys", "create", "shop")
    assert key["key"].startswith(f"sk-hg-{key['id']}-")  # type: ignore[index]
    rotated = run_json(stack, "keys", "rotate", key["id"], "--grace", "1h")  # type: ignore[index]
    assert rotated["id"] == key["id"]  # type: ignore[index]
    assert rotated["key"] != key["key"]  # type: ignore[index]
    run_json(stack, "keys", "revoke", key["id"])  # type: ignore[index]
    listed = run_json(stack, "keys", "list", "--tenant", "shop")
    assert [row["state"] for row in listed] == ["revoked"]  # type: ignore[attr-defined]
    assert run_json(stack, "usage", "--tenant", "shop") == []
    profiled = run_json(stack, "profile", "--output", str(stack.data / "device.toml"))
    assert load_device(stack.data / "device.toml").step_time.floor_s == profiled["device"]["step_time"]["floor_s"]  # type: ignore[index]
    run_json(stack, "tenants", "delete", "shop", "--yes")
    unknown = headgate("tenants", "show", "shop", "--data", str(stack.data))
    assert (unknown.returncode, "shop" in unknown.stderr, "Traceback" in unknown.stderr) == (1, True, False)


async def test_a_trace_shows_the_whole_way(stack: Stack, tenant: Tenant) -> None:
    """One tree from the client's span on: the gateway, admission, the scheduler's phases, the worker."""
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with tenant.client() as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=stack.model,
            messages=[{"role": "user", "content": "37+58="}],
            temperature=0,
            extra_headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        )
    assert raw.headers["traceparent"].split("-")[1] == trace_id
    request_id = raw.headers["x-request-id"]
    wanted = {"POST /v1/chat/completions", "admission", "queue", "prefill", "decode", f"chat {stack.model}"}

    async def spans() -> list[dict[str, object]] | None:
        found = await asyncio.to_thread(run_json, stack, "trace", request_id)
        return found if wanted <= {span["name"] for span in found} else None  # type: ignore[attr-defined, return-value]

    found = await eventually(spans, timeout_s=5.0, what=f"spans {wanted}")
    assert {span["trace_id"] for span in found} == {trace_id}
    root = next(span for span in found if span["name"] == "POST /v1/chat/completions")
    assert root["parent_id"] == parent
    worker = next(span for span in found if span["name"] == f"chat {stack.model}")["attributes"]
    assert worker["gen_ai.usage.output_tokens"] == 3
    tree = headgate("trace", request_id, "--data", str(stack.data))
    assert tree.returncode == 0
    assert all(name in tree.stdout for name in wanted)


async def test_metrics_have_the_names_of_the_design(stack: Stack, new_tenant_with_contract: Tenant) -> None:
    """Of all processes, in one exposition that a Prometheus parser takes."""
    async with new_tenant_with_contract.client() as client, httpx.AsyncClient(trust_env=False) as http:
        (await new_tenant_with_contract.ask(client, counting(1, 20))).assert_right()

        async def complete() -> str | None:
            text = (await http.get(f"{stack.api}/metrics")).text
            names = {family.name for family in text_string_to_metric_families(text)}
            # A name may be there before its first series: the scheduler tells of itself every two seconds.
            return text if set(_METRICS) <= names and "headgate_kv_blocks{" in text else None

        async def missing() -> set[str]:
            text = (await http.get(f"{stack.api}/metrics")).text
            return set(_METRICS) - {family.name for family in text_string_to_metric_families(text)}

        try:
            text = await eventually(complete, timeout_s=5.0, every_s=0.2)
        except AssertionError:
            raise AssertionError(f"missing: {await missing()}") from None
    blocks = re.findall(r'headgate_kv_blocks\{[^}]*state="(\w+)"', text)
    assert set(blocks) == {"free", "used", "cached", "host"}
    assert new_tenant_with_contract.key not in text


@pytest.fixture
def new_tenant_with_contract(stack: Stack) -> Tenant:
    """Priority, and a promise that is easily kept."""
    return stack.tenant(tier="priority", ttft_ms=5000, tpot_ms=500)


async def test_no_process_without_torch_is_large(stack: Stack, tenant: Tenant) -> None:
    """At most 120 MB at the highest, after what this stack has been through and two hundred streams more."""
    async with tenant.client() as client:
        for _ in range(5):
            answers = [tenant.ask(client, counting(first, first + 9), max_tokens=60) for first in range(1, 41)]
            for answer in await asyncio.gather(*answers):
                answer.assert_right()
    peaks = {name: resident_kib(pid, peak=True) / 1000 for name, pid in stack.pids().items() if "worker" not in name}
    assert len(peaks) == 6
    assert max(peaks.values()) <= 120, peaks


async def test_sigterm_and_sigint_end_it_with_zero(new_stack: Callable[..., Stack]) -> None:
    """Nothing is left: no process, no state of a running stack. What was kept is there at the next start."""
    stack = new_stack("--device", "mock")
    tenant = stack.tenant()
    second = headgate("serve", "--data", str(stack.data), "--port", "0", "--admin-port", "0")
    assert second.returncode == 1
    assert "already" in second.stderr
    assert "Traceback" not in second.stderr
    for how in (signal.SIGTERM, signal.SIGINT):
        pids = stack.pids()
        assert await asyncio.to_thread(stack.stop, how) == 0
        assert all(has_ended(pid) for pid in pids.values()), pids
        gone = headgate("ps", "--data", str(stack.data))
        assert (gone.returncode, "no stack is running" in gone.stderr) == (1, True)
        stack.start()
        with stack.admin() as admin:
            assert [row["name"] for row in admin.get("tenants")["tenants"]] == [tenant.name]
    async with tenant.client() as client:
        assert [model.id async for model in client.models.list()] == [stack.model]
    await _survives_its_supervisor(stack)


async def _survives_its_supervisor(stack: Stack) -> None:
    """kill -9 of the supervisor ends its children too, and the same directory serves again."""
    pids = stack.pids()
    assert stack.process is not None
    stack.process.kill()
    stack.process.wait()
    await eventually(
        lambda: all(has_ended(pid) for pid in pids.values()), timeout_s=BACK_S, what=f"its children end: {pids}"
    )
    (stack.data / "endpoints.json").unlink(missing_ok=True)
    stack.start()
    await stack.all_ready(without=set(pids.values()))


def test_what_cannot_be_served_is_said_clearly(tmp_path: Path) -> None:
    """A port in use, a model that is none: one line, exit code 1, no traceback, no process left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, words in (
            (("--port", port, "--admin-port", "0"), port),
            (("--port", "0", "--admin-port", port), port),
            (("--port", "0", "--admin-port", "0", "--model", str(tmp_path)), "config.json"),
        ):
            done = headgate("serve", "--data", str(tmp_path / "data"), *options)
            assert done.returncode == 1
            assert words in done.stderr
            assert "Traceback" not in done.stderr
