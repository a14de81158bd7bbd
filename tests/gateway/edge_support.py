"""A small in-process implementation of the seam, a model to go with it, and a real server around both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import uvicorn
from starlette.applications import Starlette
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from actors.messages import Decision, Quota
from gateway.app import create_app
from gateway.errors import Unauthorized
from gateway.generation import Delivery, Generation, GenerationFailed, Refused
from gateway.hooks import Hooks
from gateway.principal import Principal
from gateway.server import server_config
from gateway.settings import EdgeSettings
from gateway.text.tokenizer import ModelText
from policies.vocabulary import Contract, Finish, Request, Tenant, unpack_tokens

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KEY = "sk-hg-test-key"


def byte_level_tokenizer(size: int = 420) -> Tokenizer:
    """A byte-level BPE vocabulary with the control tokens of TEMPLATE: 0 begins a turn, 1 ends it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, this is a test of the gateway; stop here, one two three"] * 4, trainer)
    return tokenizer


def small_model(name: str = "demo", *, max_context: int = 256) -> ModelText:
    """The model that tests ask for."""
    return ModelText(
        name,
        byte_level_tokenizer(),
        max_context=max_context,
        eos_ids=[1],
        template=TEMPLATE,
        variables={"eos_token": "<|im_end|>"},
        created_unix_s=1_700_000_000,
    )


class FakeGeneration:
    """A generation that is fed by the test. A slow reader gets one larger delivery, as the seam demands."""

    def __init__(self, request: Request, decision: Decision, cached_tokens: int = 0) -> None:
        self.request = request
        self.decision = decision
        self.prompt_tokens = len(unpack_tokens(request.prompt))
        self.cached_tokens = cached_tokens
        self.closed_with: list[Finish] = []
        self.closed = asyncio.Event()
        self.delivered = 0
        self._wake = asyncio.Event()
        self._progress = asyncio.Condition()
        self._tokens: list[int] = []
        self._logprobs: list[list[tuple[int, float]]] = []
        self._finish = Finish.none
        self._error: str | None = None

    def give(
        self,
        tokens: list[int],
        finish: Finish = Finish.none,
        logprobs: list[list[tuple[int, float]]] | None = None,
    ) -> None:
        """Outputs arrive."""
        self._tokens += tokens
        self._logprobs += logprobs or []
        self._finish = finish
        self._wake.set()

    def fail(self, why: str) -> None:
        """The generation cannot go on."""
        self._error = why
        self._wake.set()

    async def deliveries(self) -> AsyncIterator[Delivery]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._error is not None:
                raise GenerationFailed(self._error)
            delivery = Delivery(self._tokens, self._finish, self._logprobs)
            self._tokens, self._logprobs = [], []
            self.delivered += 1
            async with self._progress:
                self._progress.notify_all()
            yield delivery
            if delivery.finish is not Finish.none:
                return

    async def read_after(self, delivered: int) -> None:
        """Until the reader has taken more than `delivered` deliveries, or is gone."""
        async with self._progress:
            await self._progress.wait_for(lambda: self.delivered > delivered or bool(self.closed_with))

    async def close(self, finish: Finish = Finish.cancelled) -> None:
        self.closed_with.append(finish)
        async with self._progress:
            self._progress.notify_all()
        self.closed.set()


Script = Callable[[FakeGeneration], None]


@dataclass
class FakeFrontend:
    """Admits at once, unless the test says otherwise, and feeds each generation by `script`."""

    script: Script
    decide: Callable[[Request], Decision] = lambda request: Decision(outcome="admitted", predicted_ttft_s=0.0125)
    cached_tokens: int = 0
    reasons: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    calls: list[dict[str, object]] = field(default_factory=list)
    generations: list[FakeGeneration] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None  # admission waits for it
    _withdrawal: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def all_withdrawn(self, count: int) -> None:
        """Until `count` calls of admit were cancelled."""
        async with self._withdrawal:
            await self._withdrawal.wait_for(lambda: len(self.withdrawn) == count)

    async def admit(self, request: Request, *, key: str, patience_s: float, retries: int = 0) -> Generation:
        self.requests.append(request)
        self.calls.append({"key": key, "patience_s": patience_s, "retries": retries})
        self.asked.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.withdrawn.append(request.id)
            async with self._withdrawal:
                self._withdrawal.notify_all()
            raise
        decision = self.decide(request)
        if decision.outcome == "refused":
            raise Refused(decision)
        generation = FakeGeneration(request, decision, self.cached_tokens)
        self.generations.append(generation)
        self.admitted.set()
        self.script(generation)
        return generation

    async def explain(self, request: Request) -> Decision:
        return self.decide(request)

    async def quota(self, tenant: str) -> Quota | None:
        return None

    def not_ready(self) -> list[str]:
        return self.reasons


def saying(model: ModelText, text: str, *, finish: Finish = Finish.stop, at_once: int = 1) -> Script:
    """Feeds the tokens of `text`, `at_once` a delivery as far as the reader keeps up, and the end-of-turn token."""

    def script(generation: FakeGeneration) -> None:
        tokens = model.encode([text], add_special_tokens=False)
        tokens = [*tokens, 1] if finish is Finish.stop else tokens

        async def feed() -> None:
            for start in range(0, len(tokens), at_once):
                over = start + at_once >= len(tokens)
                generation.give(tokens[start : start + at_once], finish if over else Finish.none)
                before = generation.delivered
                if not over:
                    await generation.read_after(before)

        feeding.append(asyncio.ensure_future(feed()))

    feeding: list[asyncio.Future[None]] = []
    return script


def silent(generation: FakeGeneration) -> None:
    """Nothing comes by itself: the test gives the tokens."""


def principal(**contract: object) -> Principal:
    """The holder of KEY."""
    return Principal(
        key_id="key1",
        tenant=Tenant(name="acme", contract=Contract(**contract)),  # type: ignore[arg-type]
        models=None,
        tier_ceiling=None,
        salt=b"salt-of-acme",
    )


@dataclass
class Edge:
    """A running server."""

    port: int
    app: Starlette
    frontend: FakeFrontend
    model: ModelText
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Any:
        """The reference client, `openai.AsyncOpenAI`, untyped for calls that its types forbid. Use it with `async
        with`.
        """
        settings: dict[str, Any] = {
            "base_url": f"{self.url}/v1",
            "api_key": KEY,
            "max_retries": 0,
            "timeout": 20.0,
            **options,
        }
        return openai.AsyncOpenAI(**settings)


@asynccontextmanager
async def edge(
    frontend: FakeFrontend | None = None,
    *,
    model: ModelText | None = None,
    settings: EdgeSettings | None = None,
    holder: Principal | None = None,
    hooks: Hooks | None = None,
) -> AsyncIterator[Edge]:
    """Serve `frontend` on a free port of loopback."""
    model = model or small_model()
    frontend = frontend or FakeFrontend(saying(model, "hello world"))
    settings = settings or EdgeSettings()
    known = holder or principal()

    def authenticate(header: str | None) -> Principal:
        if header != f"Bearer {KEY}":
            raise Unauthorized
        return known

    app = create_app(
        frontend,
        models={model.name: model},
        authenticate=authenticate,
        settings=settings,
        hooks=hooks,
        metrics=lambda accept: (b"# metrics\n", "text/plain; version=0.0.4"),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = server_config(app, host="127.0.0.1", port=port, settings=settings, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        started = asyncio.Event()
        serving = asyncio.ensure_future(_serve(server, listener, started))
        waiting = asyncio.ensure_future(started.wait())
        await asyncio.wait([serving, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        try:
            yield Edge(port, app, frontend, model, server)
        finally:
            server.should_exit = True
            await serving


async def _serve(server: uvicorn.Server, listener: socket.socket, started: asyncio.Event) -> None:
    """`Server.serve` without taking over the process's signals."""
    startup = server.startup

    async def announced(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets=sockets)
        started.set()

    server.startup = announced  # type: ignore[method-assign]
    await server._serve(sockets=[listener])
