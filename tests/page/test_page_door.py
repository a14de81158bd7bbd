from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import StreamingResponse
from starlette.types import Message

from actors.messages import AuditQuery, AuditRows, Decision, UsageQuery, UsageRows
from actors.runtime.memory_store import MemoryBucket
from gateway.admin import AdminSources, admin_app
from gateway.directory import Directory
from gateway.keys import new_admin_key
from gateway.page.door import AdminDoor
from gateway.page.routes import PAGE_HEADERS
from gateway.page.sessions import LIFETIME_S, Sessions
from gateway.tenancy import Tenancy
from policies.vocabulary import Request

KEY = new_admin_key()
PEPPER = b"pepper" * 6
CSRF = "x-headgate-csrf"


async def _usage(query: UsageQuery) -> UsageRows:
    return UsageRows([])


async def _audit(query: AuditQuery) -> AuditRows:
    return AuditRows([])


async def _explain(request: Request) -> Decision:
    return Decision(outcome="admitted")


class Operator:
    """A browser without scripts, at the admin app over buckets in memory."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.entries: list[dict[str, Any]] = []
        tenants, keys = MemoryBucket(), MemoryBucket()
        self.directory = Directory(tenants, keys, pepper=PEPPER, salt_secret=b"salt", now=lambda: self.now)
        self.app = admin_app(
            admin_key=KEY,
            tenancy=Tenancy(tenants, keys, self.directory, pepper=PEPPER, audit=self._append, now=lambda: self.now),
            directory=self.directory,
            sources=AdminSources(usage=_usage, audit=_audit, explain=_explain),
            now=lambda: self.now,
        )
        self.http = self.client()

    def client(self, url: str = "http://admin") -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url=url)

    async def _append(self, payload: bytes, message_id: str) -> None:
        self.entries.append(json.loads(payload))

    async def sign_in(self, key: str = KEY, **headers: str) -> httpx.Response:
        return await self.http.post("/login", data={"key": key}, headers=headers)

    async def token(self) -> str:
        return str((await self.http.get("/session")).json()["csrf"])

    async def create(self, **headers: str) -> httpx.Response:
        return await self.http.post("/admin/v1/tenants", json={"name": "acme"}, headers=headers)


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    made = Operator()
    await made.directory.start()
    yield made
    await made.directory.stop()
    await made.http.aclose()


async def test_the_page_needs_a_login(operator: Operator) -> None:
    """Without a session `/` leads to the login, and the login with the key to `/`."""
    away = await operator.http.get("/")
    assert (away.status_code, away.headers["location"]) == (303, "/login")
    login = await operator.http.get("/login")
    assert login.status_code == 200
    assert 'name="key"' in login.text
    back = await operator.sign_in()
    assert (back.status_code, back.headers["location"]) == (303, "/")
    assert 'id="headline"' in (await operator.http.get("/")).text
    assert (await operator.http.get("/login")).headers["location"] == "/"


async def test_the_cookie_is_for_http_and_this_site_alone(operator: Operator) -> None:
    """HttpOnly, SameSite=Strict, and Secure where the browser came by https."""
    cookie = (await operator.sign_in()).headers["set-cookie"].lower()
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "secure" not in cookie
    async with operator.client("https://admin") as client:
        answer = await client.post("/login", data={"key": KEY})
        assert "; secure" in answer.headers["set-cookie"].lower()


async def test_the_key_is_in_no_answer(operator: Operator) -> None:
    """Neither the cookie nor a page repeats it."""
    answer = await operator.sign_in()
    wrong = await operator.sign_in(KEY + "x")
    assert KEY not in str(answer.headers) + answer.text + str(wrong.headers) + wrong.text


@pytest.mark.parametrize(
    "key",
    ["", "sk-hg-admin-wrong", KEY[:-1], KEY + "x", "ü"],
    ids=["none", "malformed", "shorter", "longer", "not ascii"],
)
async def test_a_wrong_key_opens_nothing(operator: Operator, key: str) -> None:
    """It is told on the login page, in a form that readers of screens find."""
    answer = await operator.sign_in(key)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "That is not the admin key" in answer.text
    assert 'aria-invalid="true"' in answer.text


async def test_a_program_may_sign_in_with_json(operator: Operator) -> None:
    """204 and the cookie, or the error of the API."""
    answer = await operator.http.post("/login", json={"key": KEY})
    assert answer.status_code == 204
    assert (await operator.http.get("/admin/v1/tenants")).status_code == 200
    for body, status in (({"key": "x"}, 401), ({}, 400), ([], 400)):
        assert (await operator.http.post("/login", json=body)).status_code == status


async def test_tries_are_limited(operator: Operator) -> None:
    """After five wrong keys the next has to wait, and is told how long."""
    for _ in range(5):
        assert (await operator.sign_in("wrong")).status_code == 401
    answer = await operator.sign_in("wrong")
    assert answer.status_code == 429
    assert re.search(r"Try again in \d+ seconds", answer.text)


async def test_nobody_locks_the_operators_out(operator: Operator) -> None:
    """Behind a proxy all have one address: the right key opens however many wrong ones came from there."""
    for _ in range(8):
        await operator.sign_in("wrong")
    assert (await operator.sign_in()).status_code == 303


@pytest.mark.parametrize("body", ['{"x":' + "[" * 3000, '{"key":' + "[" * 3000, '{"key":"\\ud800"}'])
async def test_a_login_that_is_no_login_is_the_fault_of_who_sent_it(operator: Operator, body: str) -> None:
    """However deep it is nested: 400, and no error in the log of a gateway that has none."""
    answer = await operator.http.post("/login", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


async def test_a_login_does_not_wait_for_its_body_for_ever(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends it slowly would hold a connection without having shown a key."""
    monkeypatch.setattr("gateway.page.routes._BODY_TIMEOUT_S", 0.01)

    async def slowly() -> AsyncIterator[bytes]:
        yield b"key="
        await asyncio.Event().wait()

    sent: list[Message] = []
    parts = slowly()

    async def receive() -> Message:
        return {"type": "http.request", "body": await anext(parts), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/login",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
    }
    async with asyncio.timeout(10):
        await operator.app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_a_login_from_another_site_is_refused(operator: Operator) -> None:
    """Nobody signs an operator in elsewhere."""
    for origin in ("http://evil", "http://[", "http://admin.evil", "https://"):
        assert (await operator.sign_in(origin=origin)).status_code == 403
    assert (await operator.sign_in(**{"sec-fetch-site": "cross-site"})).status_code == 403
    own = {"sec-fetch-site": "same-origin", "origin": "null"}  # what a form of a page without referrer sends
    assert (await operator.sign_in(**own)).status_code == 303


async def test_the_session_asks_the_admin_api(operator: Operator) -> None:
    """Reading needs the cookie; changing needs the token too, and the audit says which session it was."""
    await operator.sign_in()
    assert (await operator.http.get("/admin/v1/tenants")).json() == {"tenants": []}
    assert (await operator.create(**{CSRF: await operator.token()})).status_code == 201
    name = (await operator.http.get("/session")).json()["name"]
    assert re.fullmatch(rf"admin:[0-9a-f]{{8}}/session:{name}", operator.entries[0]["actor"])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {CSRF: "wrong"},
        {CSRF: ""},
        {CSRF: "TOKEN", "origin": "http://evil"},
        {CSRF: "TOKEN", "origin": "null"},
        {CSRF: "TOKEN", "sec-fetch-site": "cross-site"},
        {CSRF: "TOKEN", "sec-fetch-site": "same-site"},
        {CSRF: "TOKEN", "sec-fetch-site": "none"},
    ],
)
async def test_a_forged_change_is_refused(operator: Operator, headers: dict[str, str]) -> None:
    """The cookie alone changes nothing, nor does the token from another origin."""
    await operator.sign_in()
    token = await operator.token()
    answer = await operator.create(**{name: value.replace("TOKEN", token) for name, value in headers.items()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf")
    assert operator.directory.tenants() == [] == operator.entries


async def test_a_token_of_another_session_is_no_good(operator: Operator) -> None:
    """Tokens are of one session."""
    await operator.sign_in()
    token = await operator.token()
    operator.http.cookies.clear()
    await operator.sign_in()
    assert (await operator.create(**{CSRF: token})).status_code == 403


async def test_other_sites_do_not_read_with_the_cookie(operator: Operator) -> None:
    """Nor the facts, nor the token."""
    await operator.sign_in()
    for path in ("/admin/v1/tenants", "/session"):
        assert (await operator.http.get(path, headers={"sec-fetch-site": "cross-site"})).status_code == 403
        assert (await operator.http.get(path, headers={"origin": "http://evil"})).status_code == 403


async def test_the_key_goes_on_to_open_by_itself(operator: Operator) -> None:
    """A bearer needs no token, and a wrong one is not helped by a session."""
    assert (await operator.create(authorization=f"Bearer {KEY}")).status_code == 201
    await operator.sign_in()
    answer = await operator.http.get("/admin/v1/tenants", headers={"authorization": "Bearer wrong"})
    assert answer.status_code == 401


async def test_logout_ends_the_session_at_once(operator: Operator) -> None:
    """Also for a copy of the cookie; it needs the token, so that nobody else signs an operator out."""
    await operator.sign_in()
    copy = dict(operator.http.cookies)
    assert (await operator.http.post("/logout")).status_code == 403
    assert (await operator.http.post("/logout", headers={CSRF: await operator.token()})).status_code == 204
    assert not operator.http.cookies
    for name, value in copy.items():
        operator.http.cookies.set(name, value)
    assert (await operator.http.get("/session")).status_code == 401
    assert (await operator.http.get("/admin/v1/tenants")).status_code == 401


async def test_another_site_does_not_take_the_cookie_away(operator: Operator) -> None:
    """It posts a form: the browser sends no cookie along, but would heed what the answer says of it."""
    for headers in ({"origin": "http://evil"}, {"sec-fetch-site": "cross-site"}):
        answer = await operator.http.post("/logout", headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


async def test_a_session_lives_while_it_asks(operator: Operator) -> None:
    """Each answer renews the cookie; half an hour of silence ends it."""
    await operator.sign_in()
    for _ in range(4):
        operator.now += 25 * 60
        assert (await operator.http.get("/admin/v1/tenants")).status_code == 200
    operator.now += 30 * 60
    assert (await operator.http.get("/admin/v1/tenants")).status_code == 401


@pytest.mark.parametrize("path", ["/", "/login", "/session", "/assets/x/main.js", "/assets/x/chart.js"])
async def test_everything_of_the_page_is_locked_down(operator: Operator, path: str) -> None:
    """One policy for all of it: own scripts and styles, no frame, no referrer, no guessing of types."""
    await operator.sign_in()
    headers = (await operator.http.get(path)).headers
    assert {name: headers[name] for name in PAGE_HEADERS} == PAGE_HEADERS
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


async def test_files_are_kept_under_the_name_of_their_content(operator: Operator) -> None:
    """The page names its files by their digest, with which they may be kept for good; they come compressed."""
    await operator.sign_in()
    page = (await operator.http.get("/")).text
    sources = re.findall(r'(?:src|href)="(/assets/[0-9a-f]{16}/[^"]+)"', page)
    assert {source.rpartition("/")[2] for source in sources} >= {"main.js", "chart.js", "theme.js", "base.css"}
    for source in sources:
        answer = await operator.http.get(source)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        plain = await operator.http.get(source, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        if source.endswith("chart.js"):
            assert b"Chart.js v4" in plain.content[:200]
            assert len(gzip.compress(plain.content)) < 200_000


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "index.html", "..%2fsessions.py", "%2e%2e/routes.py", "__init__.py"]
)
async def test_nothing_else_is_served(operator: Operator, name: str) -> None:
    """Only the files of the page."""
    assert (await operator.http.get(f"/assets/x/{name}")).status_code == 404


async def test_pages_have_no_inline_script_or_style(operator: Operator) -> None:
    """They would be refused by the policy, or worse, tempt somebody to loosen it."""
    pages = [(await operator.http.get("/login")).text]
    await operator.sign_in()
    pages.append((await operator.http.get("/")).text)
    for page in pages:
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
        assert not re.search(r"<script(?![^>]*\ssrc=)", page)
        assert not re.search(r"""(?:src|href|action)=["'](?!/|#)""", page), "something of another host"


async def test_a_stream_ends_with_its_session() -> None:
    """An event stream of a session stops at its logout, and when its lifetime is over."""
    now = 1_000_000.0
    for ending in ("closed", "expired"):
        sessions = Sessions(KEY, now=lambda: now)
        door = AdminDoor(KEY, sessions)
        session = sessions.open()
        sent: list[Message] = []

        async def events(
            session: Any = session, sessions: Sessions = sessions, ending: str = ending
        ) -> AsyncIterator[bytes]:
            nonlocal now
            yield b"data: 1\n\n"
            if ending == "closed":
                sessions.close(session)
            else:
                now += LIFETIME_S
            yield b"data: 2\n\n"
            raise AssertionError("the stream went on")

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [],
            "query_string": b"",
            "asgi": {"spec_version": "2.4"},
        }
        http = HttpRequest(scope)
        response = door.leave(http, StreamingResponse(events(), media_type="text/event-stream"), session)
        await response(scope, receive, send)
        bodies = [message["body"] for message in sent if message["type"] == "http.response.body"]
        assert bodies == [b"data: 1\n\n", b""]
        assert not sent[-1].get("more_body", False)
