"""The HTTP side of a gateway, put together: routes, what they share, and who may use them.

Everything is plain ASGI: no middleware here wraps a stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.answering import Job
from gateway.boundary import CHAT, COMPLETIONS, Boundary, no_route
from gateway.chat import chat_job
from gateway.completions import completion_job
from gateway.decoding import JsonBody
from gateway.errors import ModelNotFound
from gateway.exchange import Exchange, exchange_of
from gateway.generation import Frontend
from gateway.hooks import Hooks, NoHooks
from gateway.openai import ChatRequest, Common, CompletionRequest, Model, ModelList
from gateway.openapi import document
from gateway.principal import Principal
from gateway.serving import Server
from gateway.settings import EdgeSettings
from gateway.text.pool import TokenisingPool
from gateway.text.tokenizer import ModelText

__all__ = ["Authenticate", "create_app"]

#: From the Authorization header to its principal. Raises Unauthorized. Must not block.
Authenticate = Callable[[str | None], Principal]

_Handler = Callable[[Exchange], Awaitable[None]]


def create_app(
    frontend: Frontend,
    *,
    models: Mapping[str, ModelText],
    authenticate: Authenticate,
    settings: EdgeSettings | None = None,
    hooks: Hooks | None = None,
    metrics: Callable[[str], tuple[bytes, str]] | None = None,
) -> Starlette:
    """The application, to be served by `gateway.server`.

    `metrics` gives the body and content-type of /metrics for an Accept header; without it there is no such path.
    """
    edge = _Edge(
        frontend, models=models, authenticate=authenticate, settings=settings or EdgeSettings(), metrics=metrics
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        edge.close()

    app = Starlette(
        routes=edge.routes(),
        middleware=[Middleware(Boundary, settings=edge.settings, hooks=hooks or NoHooks())],
        exception_handlers={HTTPException: no_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would lose the body of a POST
    return app


class _Endpoint:
    """Lets the router call a handler as plain ASGI."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handler(exchange_of(scope))


class _Edge:
    """The handlers and what they share."""

    def __init__(
        self,
        frontend: Frontend,
        *,
        models: Mapping[str, ModelText],
        authenticate: Authenticate,
        settings: EdgeSettings,
        metrics: Callable[[str], tuple[bytes, str]] | None,
    ) -> None:
        self.settings = settings
        self._frontend = frontend
        self._models = models
        self._authenticate = authenticate
        self._metrics = metrics
        self._pool = TokenisingPool(threads=settings.tokenise_threads, queue=settings.tokenise_queue)
        self._server = Server(frontend, pool=self._pool, settings=settings)
        self._chat_body = JsonBody(ChatRequest, max_depth=settings.max_json_depth)
        self._completion_body = JsonBody(CompletionRequest, max_depth=settings.max_json_depth)
        self._openapi = msgspec.json.encode(document())

    def routes(self) -> list[Route]:
        get: dict[str, _Handler] = {
            "/v1/models": self._list_models,
            "/v1/models/{model:path}": self._show_model,
            "/health": self._health,
            "/ready": self._ready,
            "/openapi.json": self._describe,
        }
        if self._metrics is not None:
            get["/metrics"] = self._expose
        post: dict[str, _Handler] = {CHAT: self._chat, COMPLETIONS: self._complete}
        return [
            *(Route(path, _Endpoint(handler), methods=["POST"]) for path, handler in post.items()),
            *(Route(path, _Endpoint(handler), methods=["GET"]) for path, handler in get.items()),
        ]

    def close(self) -> None:
        self._pool.close()

    # --- generation ---------------------------------------------------------------------------------------------------

    async def _chat(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._chat_body, chat_job)

    async def _complete(self, exchange: Exchange) -> None:
        await self._generate(exchange, self._completion_body, completion_job)

    async def _generate(
        self, exchange: Exchange, decoder: JsonBody, job_of: Callable[[Any, ModelText, EdgeSettings], Job]
    ) -> None:
        principal = self._principal(exchange)  # before the body: who has no key gets nothing read
        raw = await exchange.body()
        began = time.perf_counter()
        body: Common = decoder.decode(raw)
        del raw
        exchange.observer.stage("parse", time.perf_counter() - began)
        model = self._model(body.model, principal)
        began = time.perf_counter()
        job = job_of(body, model, self.settings)
        exchange.observer.stage("validate", time.perf_counter() - began)
        await exchange.until_left(self._server.serve(exchange, body, job, model, principal))

    def _principal(self, exchange: Exchange) -> Principal:
        exchange.principal = self._authenticate(exchange.header(b"authorization"))
        return exchange.principal

    def _model(self, name: str, principal: Principal) -> ModelText:
        model = self._models.get(name)
        if model is None or (principal.models is not None and name not in principal.models):
            raise ModelNotFound(name)
        return model

    # --- models -------------------------------------------------------------------------------------------------------

    async def _list_models(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        names = [name for name in self._models if principal.models is None or name in principal.models]
        models = ModelList(object="list", data=[_described(self._models[name]) for name in names])
        await exchange.respond(msgspec.json.encode(models))

    async def _show_model(self, exchange: Exchange) -> None:
        principal = self._principal(exchange)
        model = self._model(exchange.scope["path_params"]["model"], principal)
        await exchange.respond(msgspec.json.encode(_described(model)))

    # --- operations ---------------------------------------------------------------------------------------------------

    async def _health(self, exchange: Exchange) -> None:
        await exchange.respond(b'{"status":"ok"}')

    async def _ready(self, exchange: Exchange) -> None:
        reasons = self._frontend.not_ready()
        body = {"status": "not ready" if reasons else "ready", "reasons": reasons}
        await exchange.respond(msgspec.json.encode(body), status=503 if reasons else 200)

    async def _expose(self, exchange: Exchange) -> None:
        assert self._metrics is not None
        body, content_type = self._metrics(exchange.header(b"accept") or "")
        await exchange.respond(body, headers=[(b"content-type", content_type.encode())])

    async def _describe(self, exchange: Exchange) -> None:
        await exchange.respond(self._openapi)


def _described(model: ModelText) -> Model:
    return Model(
        id=model.name,
        object="model",
        created=model.created_unix_s,
        owned_by="headgate",
        max_context=model.max_context,
    )
