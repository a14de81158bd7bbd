"""Every state of a key, on the running stack: who comes in, who does not, and from when on."""

from __future__ import annotations

import asyncio
import datetime
import time

import httpx
import openai
import pytest
from stack_support import Stack, Tenant, counting, eventually


async def status(stack: Stack, authorization: str | None) -> int:
    """Of a cheap request with this header."""
    headers = {} if authorization is None else {"authorization": authorization}
    async with httpx.AsyncClient(base_url=stack.api, trust_env=False) as http:
        answer = await http.get("/v1/models", headers=headers)
    if answer.status_code == 401:
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert answer.headers["x-request-id"]
        assert answer.headers["x-should-retry"] == "false"
        if authorization and len(authorization) > 30:
            assert authorization[12:] not in answer.text, "a key is never repeated"
    return answer.status_code


def typo(key: str) -> str:
    """One character is another."""
    return key[:-8] + ("a" if key[-8] != "a" else "b") + key[-7:]


async def test_who_has_no_good_key_stays_outside(stack: Stack, tenant: Tenant) -> None:
    """Missing, malformed, mistyped, unknown, of another secret, of another class: 401, and the good one gets in."""
    other = stack.tenant()
    mixed = f"{tenant.key.rpartition('-')[0]}-{other.key.rpartition('-')[2]}"
    admin_key = (stack.data / "admin.key").read_text().strip()
    bad = [None, "", "Bearer", "Basic eDp5", "Bearer sk-hg-", "Bearer " + "x" * 10_000, f"Bearer {tenant.key[:-3]}"]
    bad += [f"Bearer {typo(tenant.key)}", f"Bearer {mixed}", f"Bearer {admin_key}", f"Basic {tenant.key}"]
    for authorization in bad:
        assert await status(stack, authorization) == 401, authorization
    assert await status(stack, f"Bearer {tenant.key}") == 200
    assert await status(stack, f"bearer {tenant.key}") == 200


async def test_each_port_has_its_own_class_of_keys(stack: Stack, tenant: Tenant) -> None:
    """A tenant's key opens nothing on the admin port; nobody comes in there without the admin key."""
    admin_key = (stack.data / "admin.key").read_text().strip()
    async with httpx.AsyncClient(base_url=stack.admin_url, trust_env=False) as http:
        for path in ("tenants", "keys", "usage", "audit"):
            for headers in ({}, {"authorization": f"Bearer {tenant.key}"}):
                assert (await http.get(f"/admin/v1/{path}", headers=headers)).status_code == 401
            allowed = await http.get(f"/admin/v1/{path}", headers={"authorization": f"Bearer {admin_key}"})
            assert allowed.status_code == 200


async def test_a_revocation_takes_less_than_a_second(stack: Stack, tenant: Tenant) -> None:
    """From the answer of the admin API on, within a second; a stream that is under way ends as it would have."""
    async with tenant.client() as client:
        running = asyncio.create_task(tenant.ask(client, counting(1, 96)))
        await asyncio.sleep(0)
        assert await status(stack, f"Bearer {tenant.key}") == 200
        with stack.admin() as admin:
            admin.delete(f"keys/{tenant.key.split('-')[2]}")
        revoked = time.monotonic()
        while await status(stack, f"Bearer {tenant.key}") != 401:
            assert time.monotonic() < revoked + 1.0
        (await running).assert_right()
        with pytest.raises(openai.AuthenticationError, match="revoked"):
            await tenant.ask(client, counting(1, 3))


async def test_a_rotated_key_is_good_for_its_grace(stack: Stack, tenant: Tenant) -> None:
    """Both secrets are good during the grace; after it only the new one."""
    key_id = tenant.key.split("-")[2]
    with stack.admin() as admin:
        rotated = str(admin.post(f"keys/{key_id}/rotate", {"grace_s": 2.0})["key"])
        began = time.monotonic()
    assert rotated.split("-")[2] == key_id
    await eventually(lambda: _is(stack, rotated, 200), timeout_s=1.0)
    assert await status(stack, f"Bearer {tenant.key}") == 200
    await eventually(lambda: _is(stack, tenant.key, 401), timeout_s=4.0, what="the old secret ends")
    assert time.monotonic() - began > 1.9
    assert await status(stack, f"Bearer {rotated}") == 200


async def test_a_key_expires(stack: Stack, tenant: Tenant) -> None:
    """At its time, to the second."""
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1.5)
    with stack.admin() as admin:
        key = str(admin.post("keys", {"tenant": tenant.name, "expires": expires.isoformat()})["key"])
    await eventually(lambda: _is(stack, key, 200), timeout_s=1.0)
    await eventually(lambda: _is(stack, key, 401), timeout_s=4.0, what="it expires")
    assert datetime.datetime.now(datetime.UTC) >= expires


async def test_a_key_of_some_models_finds_no_others(stack: Stack, tenant: Tenant) -> None:
    """A model out of a key's scope does not exist for it."""
    with stack.admin() as admin:
        narrow = Tenant(stack, tenant.name, admin.post("keys", {"tenant": tenant.name, "models": ["another"]})["key"])
    await eventually(lambda: _is(stack, narrow.key, 200), timeout_s=1.0)
    async with narrow.client() as client:
        assert [model.id async for model in client.models.list()] == []
        with pytest.raises(openai.NotFoundError) as refused:
            await narrow.ask(client, counting(1, 3))
    assert refused.value.code == "model_not_found"


async def test_a_deleted_tenant_is_outside_at_once(stack: Stack, tenant: Tenant) -> None:
    """Its keys end with it."""
    with stack.admin() as admin:
        admin.delete(f"tenants/{tenant.name}")
    await eventually(lambda: _is(stack, tenant.key, 401), timeout_s=1.0)


async def _is(stack: Stack, key: str, wanted: int) -> bool:
    return await status(stack, f"Bearer {key}") == wanted
