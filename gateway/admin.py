"""The admin API: tenants, keys, usage, audit, a dry run of admission, and the processes of the stack.

On a port of its own, so that it can stay inside, with a key class of its own: no tenant's key opens it, and the admin
key opens nothing else. The live page (`gateway/page/`) is served beside it, and asks it with a session in place of the
key. What it changes is in `gateway/tenancy.py`; what it takes and shows in `gateway/admin_api.py`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from actors.messages import AuditQuery, AuditRows, Decision, UsageQuery, UsageRows
from actors.runtime.errors import ActorError
from gateway.admin_api import (
    ExplainQuestion,
    KeyOrder,
    RotateOrder,
    TenantChange,
    TenantOrder,
    changed_tenant,
    decision_view,
    decode_body,
    explained_request,
    given_fields,
    key_view,
    new_tenant,
    tenant_view,
    worker_view,
)
from gateway.directory import Directory
from gateway.errors import ApiError, BadRequest, BodyTooLarge
from gateway.live.hub import LiveHub
from gateway.live.stream import LiveStream, facts
from gateway.page.door import AdminDoor
from gateway.page.routes import Page
from gateway.page.sessions import Sessions
from gateway.secrets import check_admin_key
from gateway.tenancy import NAME, Tenancy, not_found
from observability.span_store import Span
from policies.vocabulary import Request, WorkerLoad

__all__ = ["AdminSources", "admin_app"]

_MAX_BODY_BYTES = 64 * 1024
_USAGE_BY = ("tenant", "day", "key", "request")
_MAX_ROWS = 10_000
_LONGEST_ID = 200

Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class AdminSources(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers what is not in the directory. A source that raises an ActorError gives a 503."""

    usage: Callable[[UsageQuery], Awaitable[UsageRows]]
    audit: Callable[[AuditQuery], Awaitable[AuditRows]]
    explain: Callable[[Request], Awaitable[Decision]]  # Frontend.explain
    processes: Callable[[], Awaitable[Sequence[dict[str, object]]]] | None = None
    workers: Callable[[], Sequence[WorkerLoad]] | None = None
    live: LiveHub | None = None
    spans: Callable[[str], Awaitable[Sequence[Span]]] | None = None  # of a request


def admin_app(
    *,
    admin_key: str,
    tenancy: Tenancy,
    directory: Directory,
    sources: AdminSources,
    gateway: str = "gateway-0",
    now: Callable[[], float] = time.time,
) -> Starlette:
    """The ASGI application of the admin port.

    :raises BadSecret: the admin key is weak, or of another class.
    """
    check_admin_key(admin_key)
    sessions = Sessions(admin_key, now=now)
    door = AdminDoor(admin_key, sessions)
    admin = _Admin(door, tenancy, directory, sources, gateway, now)
    page = Page(door, sessions, gateway=gateway, now=now)
    return Starlette(
        routes=[*admin.routes(), *page.routes()],
        exception_handlers={ApiError: _refused, HTTPException: _not_routed, Exception: _broken},
    )


class _Admin:
    """The endpoints. Each is wrapped in the check of the key or the session."""

    def __init__(
        self,
        door: AdminDoor,
        tenancy: Tenancy,
        directory: Directory,
        sources: AdminSources,
        gateway: str,
        now: Callable[[], float],
    ) -> None:
        self._door = door
        self._tenancy = tenancy
        self._directory = directory
        self._sources = sources
        self._gateway = gateway
        self._now = now

    def routes(self) -> list[BaseRoute]:
        table: list[tuple[str, str, Endpoint]] = [
            ("GET", "/tenants", self._list_tenants),
            ("POST", "/tenants", self._create_tenant),
            ("GET", "/tenants/{name}", self._show_tenant),
            ("PATCH", "/tenants/{name}", self._change_tenant),
            ("DELETE", "/tenants/{name}", self._delete_tenant),
            ("GET", "/keys", self._list_keys),
            ("POST", "/keys", self._create_key),
            ("GET", "/keys/{id}", self._show_key),
            ("DELETE", "/keys/{id}", self._revoke_key),
            ("POST", "/keys/{id}/rotate", self._rotate_key),
            ("GET", "/usage", self._usage),
            ("GET", "/audit", self._audit),
            ("POST", "/explain", self._explain),
            ("GET", "/processes", self._processes),
            ("GET", "/workers", self._workers),
            ("GET", "/facts", self._facts),
            ("GET", "/live", self._live),
            ("GET", "/requests/{id}/spans", self._spans),
        ]
        paths: dict[str, dict[str, Endpoint]] = {}
        for method, path, endpoint in table:
            paths.setdefault(path, {})[method] = endpoint
        return [
            Route(f"/admin/v1{path}", self._guarded(endpoints), methods=list(endpoints))
            for path, endpoints in paths.items()
        ]

    def _guarded(self, endpoints: dict[str, Endpoint]) -> Endpoint:
        async def answer(http: HttpRequest) -> Response:
            session = self._door.enter(http)
            http.state.actor = self._door.actor(session)  # for the audit
            try:
                # HEAD comes with GET.
                response = await endpoints["GET" if http.method == "HEAD" else http.method](http)
            except ActorError as error:
                raise ApiError(
                    f"The answer needs another part of the stack, which does not answer: {error}",
                    status=503,
                    type="service_unavailable_error",
                    code="unavailable",
                    retry_after_s=1.0,
                ) from error
            return self._door.leave(http, response, session)

        return answer

    async def _list_tenants(self, http: HttpRequest) -> Response:
        return _json({"tenants": [tenant_view(tenant) for tenant in self._directory.tenants()]})

    async def _create_tenant(self, http: HttpRequest) -> Response:
        tenant = new_tenant(decode_body(await _body(http), TenantOrder))
        created, revision = await self._tenancy.create_tenant(tenant, actor=http.state.actor)
        return _json(tenant_view(created, revision), status=201)

    async def _show_tenant(self, http: HttpRequest) -> Response:
        tenant, revision = await self._tenancy.tenant(http.path_params["name"])
        return _json(tenant_view(tenant, revision))

    async def _change_tenant(self, http: HttpRequest) -> Response:
        change = decode_body(await _body(http), TenantChange)
        tenant, revision = await self._tenancy.change_tenant(
            http.path_params["name"],
            lambda tenant: changed_tenant(tenant, change),
            details=given_fields(change),
            actor=http.state.actor,
            revision=_revision(http),
        )
        return _json(tenant_view(tenant, revision))

    async def _delete_tenant(self, http: HttpRequest) -> Response:
        name = http.path_params["name"]
        revoked = await self._tenancy.delete_tenant(name, actor=http.state.actor)
        return _json({"name": name, "deleted": True, "revoked_keys": revoked})

    async def _list_keys(self, http: HttpRequest) -> Response:
        tenant = http.query_params.get("tenant", "")
        if tenant and self._directory.tenant(tenant) is None:
            raise not_found("tenant", tenant)
        return _json({"keys": [key_view(record, self._now()) for record in self._directory.keys(tenant)]})

    async def _create_key(self, http: HttpRequest) -> Response:
        order = decode_body(await _body(http), KeyOrder)
        expires = None if order.expires is None else order.expires.timestamp()
        if expires is not None and expires <= self._now():
            raise BadRequest(f"`expires` is {order.expires}, which is over.", param="expires")
        record, text = await self._tenancy.create_key(
            order.tenant,
            actor=http.state.actor,
            expires_unix_s=expires,
            models=None if order.models is None else tuple(order.models),
            tier_ceiling=order.tier_ceiling,
        )
        return _json({"id": record.id, "key": text} | key_view(record, self._now()), status=201)

    async def _show_key(self, http: HttpRequest) -> Response:
        return _json(key_view(await self._tenancy.key(http.path_params["id"]), self._now()))

    async def _revoke_key(self, http: HttpRequest) -> Response:
        record = await self._tenancy.revoke_key(http.path_params["id"], actor=http.state.actor)
        return _json(key_view(record, self._now()))

    async def _rotate_key(self, http: HttpRequest) -> Response:
        order = decode_body(await _body(http), RotateOrder)
        record, text = await self._tenancy.rotate_key(
            http.path_params["id"], grace_s=order.grace_s, actor=http.state.actor
        )
        return _json({"id": record.id, "key": text} | key_view(record, self._now()))

    async def _usage(self, http: HttpRequest) -> Response:
        query = http.query_params
        by = query.get("by", "tenant")
        if by not in _USAGE_BY:
            raise BadRequest(f"`by` is {by[:100]!r}: it must be one of {', '.join(_USAGE_BY)}.", param="by")
        tenant = query.get("tenant", "")
        if tenant and not NAME.fullmatch(tenant):
            raise BadRequest(f"`tenant` is {tenant[:100]!r}, which no tenant is called.", param="tenant")
        rows = await self._sources.usage(
            UsageQuery(
                tenant=tenant,
                since=_day(http, "since"),
                until=_day(http, "until"),
                by=by,
                limit=_limit(http, 1000),
            )
        )
        return _json({"usage": [msgspec.structs.asdict(row) for row in rows.rows]})

    async def _audit(self, http: HttpRequest) -> Response:
        rows = await self._sources.audit(AuditQuery(limit=_limit(http, 100)))
        return _json({"audit": [msgspec.Raw(row.encode()) for row in rows.rows]})

    async def _explain(self, http: HttpRequest) -> Response:
        question = decode_body(await _body(http), ExplainQuestion)
        tenant = self._directory.tenant(question.tenant)
        if tenant is None:
            raise not_found("tenant", question.tenant)
        request = explained_request(question, tenant, request_id=f"explain-{uuid.uuid4().hex}", gateway=self._gateway)
        return _json(decision_view(await self._sources.explain(request)))

    async def _processes(self, http: HttpRequest) -> Response:
        if self._sources.processes is None:
            raise not_found("list of processes at", self._gateway)
        return _json({"processes": list(await self._sources.processes())})

    async def _workers(self, http: HttpRequest) -> Response:
        if self._sources.workers is None:
            raise not_found("list of workers at", self._gateway)
        return _json({"workers": [worker_view(worker) for worker in self._sources.workers()]})

    async def _facts(self, http: HttpRequest) -> Response:
        return await facts(self._hub())

    async def _live(self, http: HttpRequest) -> Response:
        return await LiveStream.open(self._hub())

    def _hub(self) -> LiveHub:
        if self._sources.live is None:
            raise not_found("live view at", self._gateway)
        return self._sources.live

    async def _spans(self, http: HttpRequest) -> Response:
        if self._sources.spans is None:
            raise not_found("store of spans at", self._gateway)
        return _json({"spans": await self._sources.spans(http.path_params["id"][:_LONGEST_ID])})


def _json(content: object, *, status: int = 200) -> Response:
    headers = {"cache-control": "no-store"}  # answers hold keys
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _body(http: HttpRequest) -> bytes:
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(_MAX_BODY_BYTES)
    return bytes(body)


def _revision(http: HttpRequest) -> int | None:
    """`If-Match: 17` makes a change conditional."""
    text = http.headers.get("if-match")
    if text is None:
        return None
    if not text.strip('"').isdecimal() or len(text) > 20:
        raise BadRequest(f"If-Match is {text[:100]!r}: it must be the `revision` of the tenant.")
    return int(text.strip('"'))


def _limit(http: HttpRequest, default: int) -> int:
    text = http.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:10]) <= _MAX_ROWS and len(text) <= 10):
        raise BadRequest(f"`limit` is {text[:100]!r}: it must be from 1 to {_MAX_ROWS}.", param="limit")
    return int(text)


def _day(http: HttpRequest, name: str) -> str:
    text = http.query_params.get(name, "")
    if text:
        try:
            return time.strftime("%Y-%m-%d", time.strptime(text, "%Y-%m-%d"))
        except ValueError:
            raise BadRequest(f"`{name}` is {text[:100]!r}: it must be a day such as 2026-11-20.", param=name) from None
    return text


async def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    response = Response(error.body(), error.status, media_type="application/json")
    response.raw_headers += [*error.headers, *error.retry_headers()]
    return response


async def _not_routed(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path[:200]}: {error.detail}. The admin API is under /admin/v1."
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    return await _refused(http, ApiError(message, status=error.status_code, code=code))


async def _broken(http: HttpRequest, error: Exception) -> Response:
    structlog.get_logger().error("the admin API failed", path=http.url.path, error=repr(error))
    return await _refused(
        http, ApiError("The admin API failed; its log says why.", status=500, type="api_error", code="internal_error")
    )
