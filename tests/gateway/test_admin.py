from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from actors.messages import AuditQuery, AuditRows, Decision, Quota, UsageQuery, UsageRow, UsageRows
from actors.runtime.errors import StoreUnavailable
from actors.runtime.memory_store import MemoryBucket
from actors.runtime.transport import Entry
from gateway.admin import AdminSources, admin_app
from gateway.directory import Directory
from gateway.errors import Unauthorized
from gateway.keys import new_admin_key, new_key
from gateway.secrets import BadSecret
from gateway.tenancy import Tenancy
from policies.vocabulary import Request, RequestLoad, StepTimeCoefficients, Tenant, WorkerLoad

PEPPER = b"pepper" * 6
ADMIN = new_admin_key()


class Racing(MemoryBucket):
    """Somebody else writes between our read and our write, `races` times."""

    races = 0
    intruder = b""

    async def get(self, key: str) -> Entry | None:
        entry = await super().get(key)
        if self.races and entry is not None:
            self.races -= 1
            await self.put(key, self.intruder)
        return entry


class Stack:
    """The admin app over real buckets in memory; usage, audit and admission are recorded questions."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.tenants, self.keys = Racing(), Racing()
        self.directory = self.follower()
        self.entries: list[dict[str, Any]] = []
        self.audit_is_away = False
        self.asked: list[object] = []
        tenancy = Tenancy(
            self.tenants, self.keys, self.directory, pepper=PEPPER, audit=self.append, now=lambda: self.now
        )
        app = admin_app(
            admin_key=ADMIN,
            tenancy=tenancy,
            directory=self.directory,
            sources=AdminSources(
                usage=self.usage, audit=self.audit, explain=self.explain, processes=self.processes, workers=self.workers
            ),
            now=lambda: self.now,
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://admin/admin/v1",
            headers={"authorization": f"Bearer {ADMIN}"},
        )

    def follower(self) -> Directory:
        return Directory(self.tenants, self.keys, pepper=PEPPER, salt_secret=b"salt", now=lambda: self.now)

    async def append(self, payload: bytes, message_id: str) -> None:
        if self.audit_is_away:
            raise StoreUnavailable("no answer from the stream")
        assert len(message_id) == 32
        self.entries.append(json.loads(payload))

    async def usage(self, query: UsageQuery) -> UsageRows:
        self.asked.append(query)
        return UsageRows([UsageRow("acme", "2026-11-20", "", "", 2, 10, 20, 3, 1)])

    async def audit(self, query: AuditQuery) -> AuditRows:
        self.asked.append(query)
        return AuditRows([json.dumps(entry) for entry in reversed(self.entries)][: query.limit])

    async def explain(self, request: Request) -> Decision:
        self.asked.append(request)
        return Decision(outcome="refused", reason="ttft_unattainable", retry_after_s=1.5, quota=Quota(requests_limit=5))

    async def processes(self) -> list[dict[str, object]]:
        return [{"role": "gateway", "pid": 7}]

    def workers(self) -> list[WorkerLoad]:
        fit = StepTimeCoefficients(0.01, 0.006, 4e-5)
        live = RequestLoad("r1", 1, 1, 100, 5, 10, None, None, 0.0)
        return [WorkerLoad("w1", "m", 64, 60, 8, 7, 256, 1024, fit, 1.0, 1.1, 1.2, [live], "cpu", 32, 4096, 1e9, 77)]

    def actions(self) -> list[tuple[str, str]]:
        return [(entry["action"], entry["target"]) for entry in self.entries]

    async def tenant(self, name: str = "acme", **fields: object) -> dict[str, Any]:
        answer = await self.http.post("/tenants", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def key(self, tenant: str = "acme", **fields: object) -> dict[str, Any]:
        answer = await self.http.post("/keys", json={"tenant": tenant, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def enter(self, key: str) -> str:
        return self.directory.authenticate(f"Bearer {key}").tenant.name


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    made = Stack()
    await made.directory.start()
    yield made
    await made.directory.stop()
    await made.http.aclose()


def _error(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


async def test_a_tenant_lives_from_creation_to_deletion(stack: Stack) -> None:
    """Create, show, list, change, take a promise away, delete; each change is audited with its actor."""
    created = await stack.tenant(
        tier="priority", ttft_ms=500, tpot_ms=50, attainment=0.99, weight=4, rpm=600, tpm=200_000, group="g"
    )
    assert created["created"] == "1970-01-12T13:46:40Z"
    assert (await stack.http.get("/tenants/acme")).json() == created
    changed = (await stack.http.patch("/tenants/acme", json={"rpm": 10, "tpot_ms": None})).json()
    assert changed == created | {"rpm": 10, "tpot_ms": None, "revision": changed["revision"]}
    assert (await stack.http.get("/tenants")).json()["tenants"] == [
        {name: value for name, value in changed.items() if name != "revision"}
    ]
    assert (await stack.http.delete("/tenants/acme")).json() == {"name": "acme", "deleted": True, "revoked_keys": 0}
    assert _error(await stack.http.get("/tenants/acme")) == (404, "not_found", None)
    assert stack.actions() == [("tenant.create", "acme"), ("tenant.change", "acme"), ("tenant.delete", "acme")]
    assert stack.entries[1]["details"] == {"rpm": 10, "tpot_ms": None}
    assert stack.entries[1]["actor"].startswith("admin:")
    assert ADMIN not in str(stack.entries)


async def test_a_key_is_shown_once_and_good_at_once(stack: Stack) -> None:
    """Creation waits until this gateway knows the key; nothing that is shown or kept later has its secret."""
    await stack.tenant()
    made = await stack.key(models=["m"], tier_ceiling="flex")
    assert stack.enter(made["key"]) == "acme"
    secret = made["key"].rsplit("-", 1)[1]
    listed = await stack.http.get("/keys")
    shown = await stack.http.get(f"/keys/{made['id']}")
    assert listed.json()["keys"] == [shown.json()]
    assert shown.json().items() >= {"state": "active", "models": ["m"], "tier_ceiling": "flex"}.items()
    entry = await stack.keys.get(made["id"])
    assert entry is not None
    for text in (listed.text, shown.text, str(stack.entries), entry.value.decode()):
        assert secret not in text
        assert "digest" not in text or text == entry.value.decode()


async def test_a_revoked_key_is_refused_before_the_answer_is_out(stack: Stack) -> None:
    """Revocation is idempotent; a second one changes and audits nothing."""
    await stack.tenant()
    made = await stack.key()
    first = await stack.http.delete(f"/keys/{made['id']}")
    with pytest.raises(Unauthorized, match="revoked"):
        stack.enter(made["key"])
    stack.now += 5
    assert (await stack.http.delete(f"/keys/{made['id']}")).json() == first.json()
    assert first.json()["state"] == "revoked"
    assert stack.actions()[-1] == ("key.revoke", made["id"])
    assert len(stack.actions()) == 3


async def test_a_key_rotates_under_its_id_with_a_grace(stack: Stack) -> None:
    """Both secrets are good until the grace is over, then the new one alone."""
    await stack.tenant()
    made = await stack.key()
    turned = (await stack.http.post(f"/keys/{made['id']}/rotate", json={"grace_s": 60})).json()
    assert (turned["id"], turned["state"]) == (made["id"], "rotating")
    assert stack.enter(made["key"]) == stack.enter(turned["key"]) == "acme"
    stack.now += 60
    with pytest.raises(Unauthorized, match="rotated"):
        stack.enter(made["key"])
    assert stack.enter(turned["key"]) == "acme"
    assert (await stack.http.get(f"/keys/{made['id']}")).json()["state"] == "active"


async def test_an_expiry_is_kept(stack: Stack) -> None:
    """ISO 8601 with a time zone; an instant that is over is refused."""
    await stack.tenant()
    made = await stack.key(expires="1970-01-12T15:46:40+01:00")
    assert (made["expires"], made["state"]) == ("1970-01-12T14:46:40Z", "active")
    stack.now += 3600
    assert (await stack.http.get(f"/keys/{made['id']}")).json()["state"] == "expired"
    with pytest.raises(Unauthorized, match="expired"):
        stack.enter(made["key"])
    late = await stack.http.post("/keys", json={"tenant": "acme", "expires": "1970-01-12T14:46:40Z"})
    assert _error(late) == (400, "invalid_value", "expires")


@pytest.mark.parametrize("state", ["revoked", "expired"])
async def test_a_key_that_is_over_does_not_rotate(stack: Stack, state: str) -> None:
    """Rotation must not bring it back."""
    await stack.tenant()
    made = await stack.key(expires="1970-01-12T14:46:40Z")
    if state == "revoked":
        await stack.http.delete(f"/keys/{made['id']}")
    else:
        stack.now += 10_000
    assert _error(await stack.http.post(f"/keys/{made['id']}/rotate")) == (409, "conflict", None)


async def test_deleting_a_tenant_revokes_its_keys_for_good(stack: Stack) -> None:
    """A tenant of the same name does not inherit them."""
    await stack.tenant()
    made = await stack.key()
    assert (await stack.http.delete("/tenants/acme")).json()["revoked_keys"] == 1
    await stack.tenant()
    with pytest.raises(Unauthorized, match="revoked"):
        stack.enter(made["key"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "a.b"}, "name"),
        ({"name": "ä"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"name": 7}, "name"),
        ({"name": "a", "tier": "gold"}, "tier"),
        ({"name": "a", "ttft_ms": -1}, "ttft_ms"),
        ({"name": "a", "ttft_ms": "fast"}, "ttft_ms"),
        ({"name": "a", "ttft_ms": 1e300}, "ttft_ms"),
        ({"name": "a", "ttft_per_1k_ms": -1}, "ttft_per_1k_ms"),
        ({"name": "a", "attainment": 1}, "attainment"),
        ({"name": "a", "weight": 0}, "weight"),
        ({"name": "a", "rpm": 0}, "rpm"),
        ({"name": "a", "tpm": 1.5}, "tpm"),
        ({"name": "a", "daily_tokens": 10**30}, "daily_tokens"),
        ({"name": "a", "group": "../x"}, "group"),
        ({"name": "a", "tier": "flex", "ttft_ms": 500}, "tier"),
        ({"name": "a", "salt": "mine"}, None),
    ],
)
async def test_bad_tenants_are_refused_with_the_field(stack: Stack, body: dict[str, object], param: str | None) -> None:
    """400 with `param`; nothing is written and nothing audited."""
    assert _error(await stack.http.post("/tenants", json=body)) == (400, "invalid_value", param)
    assert await stack.tenants.keys() == []
    assert stack.entries == []


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe", b'{"name": NaN}', b"[" * 60_000, b"null"])
async def test_bodies_that_are_no_object_are_refused(stack: Stack, body: bytes) -> None:
    """Broken, of another type, not UTF-8, too deep."""
    assert (await stack.http.post("/tenants", content=body)).status_code == 400


async def test_a_huge_body_is_refused(stack: Stack) -> None:
    """413 after 64 KiB, whatever comes behind."""
    assert _error(await stack.http.post("/tenants", content=b" " * 70_000)) == (413, "request_too_large", None)


async def test_bad_changes_and_orders_are_refused(stack: Stack) -> None:
    """The same rules for a change; a change that would contradict what is stored too."""
    await stack.tenant(ttft_ms=500)
    for change in ({"name": "b"}, {"weight": None}, {"tier": "flex"}):
        assert (await stack.http.patch("/tenants/acme", json=change)).status_code == 400
    assert (await stack.http.patch("/tenants/acme", json={"tier": "flex", "ttft_ms": None})).status_code == 200
    for order in (
        {"tenant": "acme", "models": []},
        {"tenant": "acme", "expires": "2030-01-01"},
        {"tenant": "acme", "tier_ceiling": "x"},
    ):
        assert (await stack.http.post("/keys", json=order)).status_code == 400
    made = await stack.key()
    assert _error(await stack.http.post(f"/keys/{made['id']}/rotate", json={"grace_s": -1}))[2] == "grace_s"


async def test_what_is_not_there_is_404_and_what_is_there_already_409(stack: Stack) -> None:
    """Also for names that the store would not take."""
    await stack.tenant()
    assert _error(await stack.http.post("/tenants", json={"name": "acme"}))[0] == 409
    for name in ("nobody", "..", "a%20b", "%2e", "*", "a.b", ">"):
        assert (await stack.http.patch(f"/tenants/{name}", json={})).status_code in (404, 405)
        assert (await stack.http.delete(f"/keys/{name}")).status_code in (404, 405)
    assert _error(await stack.http.post("/keys", json={"tenant": "nobody"}))[0] == 404
    assert _error(await stack.http.get("/keys?tenant=nobody"))[0] == 404
    assert _error(await stack.http.get("/nothing"))[:2] == (404, "not_found")
    assert _error(await stack.http.put("/tenants"))[:2] == (405, "method_not_allowed")


async def test_a_lost_race_is_tried_again_on_what_it_lost_to(stack: Stack) -> None:
    """Both changes are there at the end: the last writer does not wipe out the other's field."""
    await stack.tenant(rpm=1, weight=1)
    stack.tenants.intruder = msgspec.json.encode(Tenant(name="acme", group="theirs"))
    stack.tenants.races = 3
    changed = (await stack.http.patch("/tenants/acme", json={"rpm": 10})).json()
    assert (changed["rpm"], changed["group"]) == (10, "theirs")


async def test_a_race_that_is_always_lost_ends_in_409(stack: Stack) -> None:
    """And the audit says that the change did not come to pass."""
    await stack.tenant()
    stack.tenants.intruder = msgspec.json.encode(Tenant(name="acme"))
    stack.tenants.races = 100
    assert _error(await stack.http.patch("/tenants/acme", json={"rpm": 10}))[0] == 409
    assert stack.actions()[-2:] == [("tenant.change", "acme"), ("tenant.change.failed", "acme")]


async def test_a_change_can_be_tied_to_the_revision_it_was_made_for(stack: Stack) -> None:
    """If-Match with an older revision is refused."""
    created = await stack.tenant()
    tied = {"if-match": str(created["revision"])}
    assert (await stack.http.patch("/tenants/acme", json={"rpm": 10}, headers=tied)).status_code == 200
    assert _error(await stack.http.patch("/tenants/acme", json={"rpm": 20}, headers=tied))[0] == 409
    assert (await stack.http.patch("/tenants/acme", json={}, headers={"if-match": "x"})).status_code == 400


async def test_nothing_is_changed_unrecorded(stack: Stack) -> None:
    """Without the audit stream a change is refused with 503, and nothing is written."""
    stack.audit_is_away = True
    answer = await stack.http.post("/tenants", json={"name": "acme"})
    assert _error(answer)[:2] == (503, "unavailable")
    assert answer.headers["retry-after-ms"] == "1000"
    assert await stack.tenants.keys() == []


@pytest.mark.parametrize(
    "wrong",
    [None, "Bearer", "Bearer wrong", "Bearer " + new_admin_key(), f"Basic {ADMIN}"],
    ids=["none", "empty", "malformed", "another", "basic"],  # not the keys: they differ from process to process
)
async def test_only_the_admin_key_opens(stack: Stack, wrong: str | None) -> None:
    """Every endpoint, before anything of the request is looked at."""
    await stack.tenant()
    keys = [wrong, "Bearer " + new_key(PEPPER)[1], "Bearer " + (await stack.key())["key"]]
    for key in keys:
        del stack.http.headers["authorization"]
        if key is not None:
            stack.http.headers["authorization"] = key
        for method, path in (("GET", "/tenants"), ("POST", "/keys"), ("DELETE", "/tenants/acme"), ("POST", "/explain")):
            assert _error(await stack.http.request(method, path))[:2] == (401, "invalid_api_key")
        stack.http.headers["authorization"] = f"Bearer {ADMIN}"
    assert await stack.tenants.keys() == ["acme"]


def test_a_weak_admin_key_stops_the_start() -> None:
    """Rather than opening the stack to who guesses it."""
    bucket = MemoryBucket()
    directory = Directory(bucket, bucket, pepper=PEPPER, salt_secret=b"salt")

    async def never(*arguments: object) -> Any:
        raise AssertionError

    tenancy = Tenancy(bucket, bucket, directory, pepper=PEPPER, audit=never)
    with pytest.raises(BadSecret):
        admin_app(
            admin_key="sk-hg-admin-hunter2",
            tenancy=tenancy,
            directory=directory,
            sources=AdminSources(usage=never, audit=never, explain=never),
        )


async def test_usage_and_audit_ask_the_ledger(stack: Stack) -> None:
    """With the filters of the query; bad ones are refused by name."""
    answer = await stack.http.get("/usage?tenant=acme&since=2026-11-01&until=2026-11-20&by=day&limit=5")
    assert (
        answer.json()["usage"][0].items()
        >= {"tenant": "acme", "requests": 2, "output_tokens": 20, "unsettled": 1}.items()
    )
    assert stack.asked == [UsageQuery(tenant="acme", since="2026-11-01", until="2026-11-20", by="day", limit=5)]
    await stack.tenant()
    assert [entry["action"] for entry in (await stack.http.get("/audit?limit=1")).json()["audit"]] == ["tenant.create"]
    for query, param in (
        ("by=hour", "by"),
        ("since=yesterday", "since"),
        ("until=2026-13-01", "until"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("tenant=%00", "tenant"),  # which PostgreSQL takes for no text, and the ledger for a lost database
        ("tenant=a%20b", "tenant"),
    ):
        assert _error(await stack.http.get(f"/usage?{query}")) == (400, "invalid_value", param)


async def test_explain_asks_admission_for_the_tenants_contract(stack: Stack) -> None:
    """The hypothetical request carries its tier and deadlines; the decision comes back with its quota."""
    await stack.tenant(tier="priority", ttft_ms=450, ttft_per_1k_ms=500, tpot_ms=50)
    question = {"tenant": "acme", "model": "m", "prompt_tokens": 100, "max_tokens": 9}
    decision = (await stack.http.post("/explain", json=question)).json()
    assert decision.items() >= {"outcome": "refused", "reason": "ttft_unattainable", "retry_after_s": 1.5}.items()
    assert decision["quota"]["requests_limit"] == 5
    (request,) = stack.asked
    assert isinstance(request, Request)
    assert (len(request.prompt), request.max_tokens, request.tier, request.ttft_s, request.tpot_s) == (
        400,
        9,
        0,
        0.5,
        0.05,
    )
    assert _error(await stack.http.post("/explain", json=question | {"tenant": "nobody"}))[0] == 404
    assert _error(await stack.http.post("/explain", json=question | {"prompt_tokens": 0}))[2] == "prompt_tokens"


async def test_processes_are_listed(stack: Stack) -> None:
    """As the given callable tells them."""
    assert (await stack.http.get("/processes")).json() == {"processes": [{"role": "gateway", "pid": 7}]}


async def test_workers_are_listed_with_what_a_simulation_needs(stack: Stack) -> None:
    """Sizes, fitted step times by name, how many steps they were fitted to; nothing about anybody's requests."""
    (worker,) = (await stack.http.get("/workers")).json()["workers"]
    assert worker.items() >= {"worker": "w1", "host_blocks": 32, "block_bytes": 4096, "steps_timed": 77}.items()
    assert worker["step_time"]["per_token_s"] == 4e-5
    assert "requests" not in worker


async def test_answers_are_not_cached(stack: Stack) -> None:
    """They hold keys."""
    assert (await stack.http.get("/tenants")).headers["cache-control"] == "no-store"


async def test_a_stored_tenant_that_cannot_be_read_is_said_to_be_so(stack: Stack) -> None:
    """Not a 500: an operator must be able to see which entry it is, and delete nothing by accident."""
    await stack.tenants.put("acme", b"{")
    assert _error(await stack.http.get("/tenants/acme"))[0] == 409
