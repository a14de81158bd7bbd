"""The directory and the admin operations on a real nats-server: what a bucket in memory cannot show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from actors.runtime import NatsTransport
from gateway.directory import KEYS_BUCKET, TENANTS_BUCKET, Directory
from gateway.errors import ApiError, Unauthorized
from gateway.tenancy import Tenancy
from headgate.nats import NatsServer, provision
from policies.vocabulary import Contract, Tenant

PEPPER = b"pepper" * 6


class House:
    """One server, and gateways that come and go."""

    def __init__(self, server: NatsServer, exits: AsyncExitStack) -> None:
        self.server = server
        self._exits = exits
        self._transports: list[NatsTransport] = []

    async def stored(self, bucket: str, key: str) -> bytes:
        """The bytes in the bucket now."""
        entry = await (await self._transports[0].bucket(bucket)).get(key)
        assert entry is not None
        return entry.value

    async def gateway(self) -> tuple[Directory, Tenancy]:
        transport = NatsTransport(self.server.url("gateway"))
        await transport.open(role="gateway", instance=f"g{len(self._transports)}")
        self._transports.append(transport)
        self._exits.push_async_callback(transport.close)
        tenants, keys = await transport.bucket(TENANTS_BUCKET), await transport.bucket(KEYS_BUCKET)
        directory = Directory(tenants, keys, pepper=PEPPER, salt_secret=b"salt")
        await directory.start()
        self._exits.push_async_callback(directory.stop)

        async def audit(payload: bytes, message_id: str) -> None:
            await transport.append("hg.audit.changes", payload, message_id=message_id)

        return directory, Tenancy(tenants, keys, directory, pepper=PEPPER, audit=audit)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        await provision(server.url("admin"))
        async with AsyncExitStack() as exits:
            yield House(server, exits)
    finally:
        await server.stop()


async def _until_refused(enter: Callable[[], object]) -> None:
    while True:
        try:
            enter()
        except Unauthorized:
            return
        # The directory tells nobody of a change that came from elsewhere; a revocation is timed by asking at the door.
        await asyncio.sleep(0.001)


async def test_what_one_gateway_makes_and_revokes_holds_at_another_within_a_second(house: House) -> None:
    """A key is good at the second gateway when its record has arrived, and refused in under a second when revoked."""
    directory, tenancy = await house.gateway()
    other, _ = await house.gateway()
    await tenancy.create_tenant(Tenant(name="acme", contract=Contract(ttft_ms=500)), actor="test")
    record, key = await tenancy.create_key("acme", actor="test")
    authorization = f"Bearer {key}"
    assert directory.authenticate(authorization).tenant.contract.ttft_ms == 500
    for mirror, bucket, name in (
        (other.tenants_mirror, TENANTS_BUCKET, "acme"),
        (other.keys_mirror, KEYS_BUCKET, record.id),
    ):
        assert await mirror.seen(name, await house.stored(bucket, name))
    assert other.authenticate(authorization).key_id == record.id

    began = time.monotonic()
    await tenancy.revoke_key(record.id, actor="test")
    with pytest.raises(Unauthorized, match="revoked"):
        directory.authenticate(authorization)
    await asyncio.wait_for(_until_refused(lambda: other.authenticate(authorization)), 1)
    assert time.monotonic() - began < 1.0


async def test_tenants_and_keys_survive_the_server_and_are_followed_after_it(house: House) -> None:
    """kill -9 of the server: the door stays open meanwhile, and a revocation after it is heard."""
    directory, tenancy = await house.gateway()
    other, _ = await house.gateway()
    await tenancy.create_tenant(Tenant(name="acme"), actor="test")
    record, key = await tenancy.create_key("acme", actor="test")
    authorization = f"Bearer {key}"
    house.server.kill()
    await house.server.wait()
    assert directory.authenticate(authorization).tenant.name == "acme"
    await house.server.start()
    fresh, _ = await house.gateway()
    assert fresh.authenticate(authorization).key_id == record.id
    _, later = await house.gateway()
    await later.revoke_key(record.id, actor="test")
    for follower in (directory, other, fresh):
        enter = follower.authenticate
        await asyncio.wait_for(_until_refused(lambda enter=enter: enter(authorization)), 10)  # type: ignore[misc]


async def test_changes_that_race_on_two_gateways_all_hold(house: House) -> None:
    """Compare-and-set on the server: no change of another field is lost, and one that gives up says so."""
    _, first = await house.gateway()
    _, second = await house.gateway()
    await first.create_tenant(Tenant(name="acme"), actor="test")

    async def raise_weight(tenancy: Tenancy) -> int:
        def change(tenant: Tenant) -> Tenant:
            contract = msgspec.structs.replace(tenant.contract, weight=tenant.contract.weight + 1)
            return msgspec.structs.replace(tenant, contract=contract)

        try:
            await tenancy.change_tenant("acme", change, details={}, actor="test")
        except ApiError as error:
            return error.status
        return 200

    answers = await asyncio.gather(*(raise_weight(tenancy) for tenancy in (first, second) * 3))
    tenant, _ = await first.tenant("acme")
    assert set(answers) <= {200, 409}
    assert tenant.contract.weight == 1 + answers.count(200) > 2


async def test_deleting_and_making_again_works_on_the_store(house: House) -> None:
    """A deleted name is free, and a name that is taken is a 409."""
    directory, tenancy = await house.gateway()
    await tenancy.create_tenant(Tenant(name="acme"), actor="test")
    with pytest.raises(ApiError) as caught:
        await tenancy.create_tenant(Tenant(name="acme"), actor="test")
    assert caught.value.status == 409
    await tenancy.delete_tenant("acme", actor="test")
    assert directory.tenant("acme") is None
    await tenancy.create_tenant(Tenant(name="acme"), actor="test")
    assert directory.tenant("acme") is not None
