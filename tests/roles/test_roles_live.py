"""Roles as an orchestrator runs them: configured by environment alone, asked by their ops ports, doubled, drained."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest
from postgres_server import PASSWORD, postgres
from prometheus_client.parser import text_string_to_metric_families
from role_processes import Process, Stack, eventually

pytestmark = pytest.mark.stack

ALL = ("ledger", "admission", "scheduler", "worker", "gateway")
MODEL = "headgate-demo"


def chat(key: str, tokens: int, **fields: Any) -> dict[str, Any]:
    """Of a request that gives exactly so many tokens."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "1+1="}], "max_tokens": tokens, "ignore_eos": True}
    return {"headers": {"authorization": f"Bearer {key}"}, "json": body | fields, "timeout": 60.0}


async def stream(gateway: Process, key: str, tokens: int, started: asyncio.Event | None = None) -> tuple[int, bool]:
    """Read a stream to its end: how many tokens, and whether it ended as it should."""
    usage, done = 0, False
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("POST", f"{gateway.api}/v1/chat/completions", **chat(key, tokens, **fields)) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if started is not None and '"content":"' in line:
                started.set()
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: ") and (told := json.loads(line[6:])).get("usage"):
                usage = told["usage"]["completion_tokens"]
    return usage, done


async def ask(gateway: Process, key: str, tokens: int = 5) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(f"{gateway.api}/v1/chat/completions", **chat(key, tokens))


def health(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headgate", "health", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


async def usage(stack: Stack, gateway: Process, tenant: str) -> dict[str, Any]:
    """Its sums, once nothing is unsettled."""

    async def settled() -> dict[str, Any] | None:
        with stack.admin(gateway) as admin:
            rows = admin.get("/usage", params={"tenant": tenant}).json().get("usage", [])
        return rows[0] if rows and not rows[0]["unsettled"] else None

    found: dict[str, Any] = await eventually(settled, what="usage is settled")
    return found


async def test_every_role_is_configured_by_its_environment_and_tells_how_it_is(roles: Stack) -> None:
    """Health, readiness with reasons, its own metrics alone; `headgate health` says the same by its exit code."""
    await roles.start_all("ledger")
    gateway = roles.start("gateway")
    await gateway.is_in("not ready")
    status, told = await gateway.readiness()
    assert status == 503
    assert told["reasons"] == [f"no scheduler for model {MODEL}"]
    asked = await asyncio.to_thread(health, "--ready", "--url", gateway.ops)
    assert asked.returncode == 1
    assert "no scheduler" in asked.stderr
    assert (await asyncio.to_thread(health, "--url", gateway.ops)).returncode == 0
    await roles.start_all("admission", "scheduler", "worker")
    worker = roles.processes["worker"]
    for name in ALL:
        process = roles.processes[name]
        await process.is_in("ready")
        assert (await asyncio.to_thread(health, "--ready", "--url", process.ops)).returncode == 0
    async with httpx.AsyncClient(trust_env=False) as http:
        for name in ALL:
            text = (await http.get(f"{roles.processes[name].ops}/metrics")).text
            ups = [f for f in text_string_to_metric_families(text) if f.name == "headgate_up"]
            assert [sample.labels["role"] for family in ups for sample in family.samples] == [name]
        public = (await http.get(f"{gateway.api}/metrics")).text
        ups = [f for f in text_string_to_metric_families(public) if f.name == "headgate_up"]
        assert [sample.labels["role"] for family in ups for sample in family.samples] == ["gateway"]
    key = roles.tenant(gateway, "acme")
    assert (await ask(gateway, key)).status_code == 200
    assert worker.end() == -signal.SIGKILL

    async def noticed() -> bool:
        status, told = await gateway.readiness()
        return status == 503 and "no worker" in told["reasons"][0]

    await eventually(noticed, what="the gateway says that no worker is there")
    assert (await asyncio.to_thread(health, "--ready", "--url", worker.ops)).returncode == 1
    for name in ("gateway", "scheduler", "admission", "ledger"):
        assert roles.processes[name].end(signal.SIGTERM) == 0, roles.processes[name].words()


async def test_usage_goes_to_postgresql_with_a_password_from_a_file(roles: Stack) -> None:
    """The ledger is ready while the database answers, and a gateway's sums are what is in it."""
    password = roles.secrets / "postgres-password"
    password.write_text(PASSWORD)
    with postgres() as server:
        roles.options |= {"HEADGATE_LEDGER": server.url, "HEADGATE_LEDGER_PASSWORD_FILE": str(password)}
        await roles.start_all(*ALL)
        gateway, ledger = roles.processes["gateway"], roles.processes["ledger"]
        key = roles.tenant(gateway, "acme")
        assert (await ask(gateway, key, tokens=9)).status_code == 200
        assert (await usage(roles, gateway, "acme"))["output_tokens"] == 9
        with server.connect() as connection:
            rows = connection.execute("SELECT tenant, output_tokens FROM usage").fetchall()
        assert rows == [("acme", 9)]
        await asyncio.to_thread(server.kill)
        await ledger.is_in("not ready")
        assert (await ask(gateway, key, tokens=4)).status_code == 200  # nobody waits for the books
        await asyncio.to_thread(server.start)
        await ledger.is_in("ready")

        async def caught_up() -> bool:
            return bool((await usage(roles, gateway, "acme"))["output_tokens"] == 13)

        await eventually(caught_up, what="what came meanwhile is in the books")


async def test_without_nats_a_role_is_alive_and_not_ready(roles: Stack) -> None:
    """An orchestrator must not kill it for that; and SIGTERM ends it in good order all the same."""
    await roles.start_all("ledger")
    ledger = roles.processes["ledger"]
    roles.nats.kill()
    roles.nats.wait()

    async def noticed() -> bool:
        return await ledger.readiness() == (503, {
            "role": "ledger", "instance": "ledger", "state": "not ready", "reasons": ["not connected to NATS"],
        })  # fmt: skip

    await eventually(noticed, what=f"it says so: {await ledger.readiness()}")
    assert (await asyncio.to_thread(health, "--url", ledger.ops)).returncode == 0
    early = roles.start("admission")
    await early.is_in("starting")
    assert early.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("role", ["scheduler", "admission"])
async def test_a_standby_takes_over_within_three_seconds(roles: Stack, role: str) -> None:
    """Exactly one is ready, the other says standby; after kill -9 the other serves, and a stream goes on."""
    others = [name for name in ALL if name != role]
    await roles.start_all(*others[:1], role, f"{role}-2", *others[1:])
    first, second = roles.processes[role], roles.processes[f"{role}-2"]
    states = {process.name: (await process.readiness())[1]["state"] for process in (first, second)}
    assert sorted(states.values()) == ["ready", "standby"]
    holder, standby = (first, second) if states[role] == "ready" else (second, first)
    gateway = roles.processes["gateway"]
    key = roles.tenant(gateway, "acme")
    assert (await ask(gateway, key)).status_code == 200
    started = asyncio.Event()
    streaming = asyncio.create_task(stream(gateway, key, 400, started))
    await asyncio.wait_for(started.wait(), 20)
    began = time.monotonic()
    holder.end()
    await standby.is_in("ready", timeout_s=5)
    took_s = time.monotonic() - began
    assert (await asyncio.wait_for(streaming, 60)) == (400, True)
    assert (await ask(gateway, key)).status_code == 200
    assert took_s < 3.0
    back = roles.start(role, holder.name)
    await back.is_in("standby")
    assert standby.end(signal.SIGTERM) == 0
    began = time.monotonic()
    await back.is_in("ready", timeout_s=5)
    assert time.monotonic() - began < 1.0  # a lease that is given back is taken at once
    assert (await asyncio.wait_for(ask(gateway, key), 20)).status_code == 200


async def test_two_gateways_share_keys_limits_and_usage(roles: Stack) -> None:
    """A key of one opens the other, a revoked one neither; a limit is spent at both; usage is summed once."""
    await roles.start_all(*ALL, "gateway-2", "admission-2")
    one, two = roles.processes["gateway"], roles.processes["gateway-2"]
    key = roles.tenant(one, "acme", rpm=6)

    async def known() -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"{two.api}/v1/models", headers={"authorization": f"Bearer {key}"})
        return answer.status_code == 200

    await eventually(known, what="the other gateway knows the key")
    answers = [await ask(gateway, key, tokens=3) for gateway in (one, two) * 4]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 6, statuses
    assert statuses.count(429) == 2
    for gateway in (one, two):
        sums = await usage(roles, gateway, "acme")
        assert (sums["requests"], sums["output_tokens"]) == (6, 18)
    with roles.admin(two) as admin:
        (row,) = [row for row in admin.get("/keys").json()["keys"] if row["tenant"] == "acme"]
        admin.delete(f"/keys/{row['id']}").raise_for_status()

    async def refused() -> bool:
        return [(await ask(gateway, key)).status_code for gateway in (one, two)] == [401, 401]

    await eventually(refused, what="both refuse the revoked key")


async def test_a_gateway_that_drains_drops_no_stream(roles: Stack) -> None:
    """After SIGTERM /ready is 503 and new requests are refused, streams go on to their end, and it exits with 0."""
    roles.options["HEADGATE_DRAIN_S"] = "60"
    await roles.start_all(*ALL)
    gateway = roles.processes["gateway"]
    key = roles.tenant(gateway, "acme")
    starts = [asyncio.Event() for _ in range(4)]
    streams = [asyncio.create_task(stream(gateway, key, 300 + 100 * i, start)) for i, start in enumerate(starts)]
    await asyncio.wait_for(asyncio.gather(*(start.wait() for start in starts)), 20)
    gateway.popen.send_signal(signal.SIGTERM)
    await gateway.is_in("draining")
    assert (await gateway.readiness())[0] == 503
    async with httpx.AsyncClient(trust_env=False) as http:
        public = await http.get(f"{gateway.api}/ready")
    assert (public.status_code, "draining" in public.text) == (503, True)
    refused = await ask(gateway, key)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert not any(task.done() for task in streams), "it was over before it was drained"
    assert await asyncio.gather(*streams) == [(300 + 100 * i, True) for i in range(4)]
    assert await asyncio.to_thread(gateway.popen.wait, 10) == 0, gateway.words()
    again = roles.start("gateway")
    await again.is_in("ready")
    assert (await usage(roles, again, "acme"))["output_tokens"] == sum(300 + 100 * i for i in range(4))


async def test_a_drain_has_an_end(roles: Stack) -> None:
    """A stream that is longer than the drain is closed and settled, and the gateway still ends with 0."""
    roles.options["HEADGATE_DRAIN_S"] = "0.5"
    await roles.start_all(*ALL)
    gateway = roles.processes["gateway"]
    key = roles.tenant(gateway, "acme")
    started = asyncio.Event()
    streaming = asyncio.create_task(stream(gateway, key, 1900, started))
    await asyncio.wait_for(started.wait(), 20)
    began = time.monotonic()
    assert await asyncio.to_thread(gateway.end, signal.SIGTERM) == 0, gateway.words()
    assert time.monotonic() - began < 8.0
    await asyncio.gather(streaming, return_exceptions=True)
    again = roles.start("gateway")
    await again.is_in("ready")
    assert 0 < (await usage(roles, again, "acme"))["output_tokens"] < 1900


async def test_a_worker_that_drains_finishes_what_it_has_and_gets_nothing_new(roles: Stack) -> None:
    """Its streams end without a new attempt; what comes meanwhile goes to the other worker."""
    roles.options["HEADGATE_DRAIN_S"] = "60"
    await roles.start_all(*ALL)
    gateway, worker = roles.processes["gateway"], roles.processes["worker"]
    key = roles.tenant(gateway, "acme")
    started = asyncio.Event()
    streaming = asyncio.create_task(stream(gateway, key, 500, started))
    await asyncio.wait_for(started.wait(), 20)
    other = roles.start("worker", "worker-2")
    await other.is_in("ready")
    worker.popen.send_signal(signal.SIGTERM)
    await worker.is_in("draining")
    assert (await ask(gateway, key)).status_code == 200
    assert not streaming.done(), "it was over before it was drained"
    assert await streaming == (500, True)
    assert await asyncio.to_thread(worker.popen.wait, 10) == 0, worker.words()
    assert (await ask(gateway, key)).status_code == 200
    assert "resumed" not in gateway.log.read_text()
