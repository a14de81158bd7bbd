from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from actors.runtime.memory_store import MemoryBucket
from gateway.directory import Directory, bearer, cache_salt
from gateway.errors import Unauthorized
from gateway.keys import KeyRecord, new_admin_key, new_key, revoked, rotated
from policies.vocabulary import Contract, Tenant

PEPPER = b"pepper" * 6
SALT = b"salt" * 8


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class House:
    """Two buckets and a directory that follows them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tenants, self.keys = MemoryBucket(), MemoryBucket()
        self.directory = self.another()

    def another(self) -> Directory:
        return Directory(self.tenants, self.keys, pepper=PEPPER, salt_secret=SALT, now=self.clock)

    async def tenant(self, name: str, **fields: object) -> Tenant:
        tenant = Tenant(name=name, **fields)  # type: ignore[arg-type]
        value = msgspec.json.encode(tenant)
        await self.tenants.put(name, value)
        await self.directory.tenants_mirror.seen(name, value)
        return tenant

    async def key(self, tenant: str, **fields: object) -> tuple[KeyRecord, str]:
        key_id, text, digest = new_key(PEPPER)
        record = KeyRecord(id=key_id, tenant=tenant, digest=digest, created_unix_s=self.clock())
        return await self.store(msgspec.structs.replace(record, **fields)), text

    async def store(self, record: KeyRecord) -> KeyRecord:
        value = msgspec.json.encode(record)
        await self.keys.put(record.id, value)
        await self.directory.keys_mirror.seen(record.id, value)
        return record

    def enter(self, key: str) -> str:
        return self.directory.authenticate(f"Bearer {key}").tenant.name


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    await made.directory.start()
    yield made
    await made.directory.stop()


async def test_a_key_opens_as_its_tenant_with_its_scope(house: House) -> None:
    """The principal has all that serving needs, and no secret."""
    tenant = await house.tenant("acme", contract=Contract(tier="priority", ttft_ms=500))
    record, key = await house.key("acme", models=("m",), tier_ceiling="default")
    principal = house.directory.authenticate(f"Bearer {key}")
    assert (principal.key_id, principal.tenant, principal.models, principal.tier_ceiling) == (
        record.id,
        tenant,
        ("m",),
        "default",
    )
    assert principal.salt == cache_salt(SALT, tenant)
    assert key not in repr(principal)


async def test_what_was_stored_before_the_start_is_known_after_it(house: House) -> None:
    """`start` returns when the directory is whole: a gateway that restarts refuses nobody."""
    await house.tenant("acme")
    _, key = await house.key("acme")
    another = house.another()
    await another.start()
    assert another.authenticate(f"Bearer {key}").tenant.name == "acme"
    await another.stop()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "key is needed"),
        ("", "key is needed"),
        ("Basic dXNlcjpwYXNz", "key is needed"),
        ("Bearer", "key is needed"),
        ("Bearer a b", "key is needed"),
        ("Bearer " + "x" * 10_000, "key is needed"),
        ("Bearer nonsense", "malformed"),
        ("Bearer " + new_admin_key(), "admin key"),
        ("Bearer " + new_key(PEPPER)[1], "not known"),
        ("Bearer " + new_key(PEPPER)[1][:-1] + "ä", "malformed"),
    ],
    ids=["none", "empty", "basic", "no key", "two", "long", "nonsense", "admin", "unknown", "not ascii"],
)
async def test_what_is_no_key_of_ours_is_refused_with_the_reason(
    house: House, header: str | None, message: str
) -> None:
    """Always a 401 of code invalid_api_key, and never with the key in it."""
    with pytest.raises(Unauthorized, match=message) as caught:
        house.directory.authenticate(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert header is None or len(header) < 20 or header.split(" ")[1] not in str(caught.value)


async def test_every_state_of_a_key(house: House) -> None:
    """Valid, revoked, expired, rotated within and past its grace, wrong secret."""
    await house.tenant("acme")
    record, old = await house.key("acme")
    assert house.enter(old) == "acme"

    changed, new = rotated(record, PEPPER, grace_s=60, now_unix_s=house.clock())
    await house.store(changed)
    assert house.enter(old) == house.enter(new) == "acme"
    house.clock.now += 60
    with pytest.raises(Unauthorized, match="rotated"):
        house.enter(old)
    assert house.enter(new) == "acme"

    stranger = new_key(b"other pepper")[1]
    await house.store(msgspec.structs.replace(changed, id=stranger[6:18]))
    with pytest.raises(Unauthorized, match="not known"):
        house.enter(stranger)

    await house.store(revoked(changed, now_unix_s=house.clock()))
    with pytest.raises(Unauthorized, match="revoked"):
        house.enter(new)

    _, brief = await house.key("acme", expires_unix_s=house.clock() + 5)
    assert house.enter(brief) == "acme"
    house.clock.now += 5
    with pytest.raises(Unauthorized, match="expired"):
        house.enter(brief)


async def test_a_revocation_reaches_another_gateway_well_within_a_second(house: House) -> None:
    """It is pushed: nobody asks the store again."""
    await house.tenant("acme")
    record, key = await house.key("acme")
    another = house.another()
    await another.start()
    value = msgspec.json.encode(revoked(record, now_unix_s=house.clock()))
    before = asyncio.get_running_loop().time()
    await house.keys.put(record.id, value)
    assert await another.keys_mirror.seen(record.id, value)
    assert asyncio.get_running_loop().time() - before < 1.0
    with pytest.raises(Unauthorized, match="revoked"):
        another.authenticate(f"Bearer {key}")
    await another.stop()


async def test_a_changed_contract_holds_for_the_next_request(house: House) -> None:
    """Principals are remade when their tenant changes."""
    await house.tenant("acme", contract=Contract(ttft_ms=500))
    _, key = await house.key("acme")
    house.enter(key)
    await house.tenant("acme", contract=Contract(ttft_ms=200))
    assert house.directory.authenticate(f"Bearer {key}").tenant.contract.ttft_ms == 200


async def test_a_deleted_tenants_keys_open_nothing(house: House) -> None:
    """Also if they were not revoked."""
    await house.tenant("acme")
    _, key = await house.key("acme")
    await house.tenants.delete("acme")
    await house.directory.tenants_mirror.seen("acme", None)
    with pytest.raises(Unauthorized, match="deleted"):
        house.enter(key)


async def test_an_entry_that_cannot_be_read_counts_as_absent(house: House) -> None:
    """Who is not known does not come in, and the others still do."""
    await house.tenant("acme")
    record, broken = await house.key("acme")
    _, whole = await house.key("acme")
    await house.keys.put(record.id, b"{")
    await house.directory.keys_mirror.seen(record.id, b"{")
    with pytest.raises(Unauthorized, match="not known"):
        house.enter(broken)
    assert house.enter(whole) == "acme"


async def test_waiting_for_a_write_that_never_comes_ends(house: House) -> None:
    """The answer then goes out all the same."""
    assert not await house.directory.keys_mirror.seen("k", b"v", timeout_s=0.001)


async def test_lists_are_sorted_and_filtered(house: House) -> None:
    """Tenants by name; keys by tenant, then by age."""
    for name in ("zebra", "acme"):
        await house.tenant(name)
    first, _ = await house.key("zebra")
    house.clock.now += 1
    second, _ = await house.key("zebra")
    third, _ = await house.key("acme")
    assert [tenant.name for tenant in house.directory.tenants()] == ["acme", "zebra"]
    assert house.directory.keys() == [third, first, second]
    assert house.directory.keys("zebra") == [first, second]
    assert house.directory.key(third.id) == third
    assert house.directory.tenant("nobody") is None


def test_tenants_share_a_cache_only_within_a_group() -> None:
    """A tenant named like a group is not in it, and another secret gives other salts."""
    alone, other = Tenant(name="a"), Tenant(name="b")
    one, two, named = Tenant(name="x", group="g"), Tenant(name="y", group="g"), Tenant(name="g")
    salts = [cache_salt(SALT, tenant) for tenant in (alone, other, one, two, named)]
    assert salts[2] == salts[3]
    assert len(set(salts)) == 4
    assert cache_salt(b"other", alone) != salts[0]


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER   abc  "])
def test_the_scheme_is_read_as_http_says(header: str) -> None:
    """Case does not matter, spaces neither."""
    assert bearer(header) == "abc"
