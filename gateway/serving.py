"""From a checked request to its answer, streamed or whole: what both endpoints share.

All choices are admitted, or none. A stream's 200 is sent only then, so that a refusal is a real 429 or 503. However
it ends (a stop string, a failure, a client that left), every generation is closed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gateway.answering import Answering, Job, all_ended, together
from gateway.errors import ApiError, BadRequest, refusal
from gateway.exchange import Exchange
from gateway.generation import Frontend, Generation, GenerationFailed, Refused
from gateway.openai import Common
from gateway.parameters import check, requests
from gateway.principal import Principal
from gateway.settings import EdgeSettings
from gateway.text.pool import TokenisingPool
from gateway.text.tokenizer import ModelText
from policies.vocabulary import Request

__all__ = ["Server"]


class Server:
    """Serves jobs."""

    def __init__(self, frontend: Frontend, *, pool: TokenisingPool, settings: EdgeSettings) -> None:
        self._frontend = frontend
        self._pool = pool
        self._settings = settings

    async def serve(self, exchange: Exchange, body: Common, job: Job, model: ModelText, principal: Principal) -> None:
        """Answer, to the end.

        :raises ApiError: it cannot be served, and nothing was written yet.
        """
        settings = self._settings
        observer = exchange.observer
        parameters = check(
            body, max_tokens=job.max_tokens, logprobs=job.logprobs, model=model, principal=principal, settings=settings
        )
        began = time.perf_counter()
        inline = job.size <= settings.tokenise_inline_chars
        prompts = job.tokenise() if inline else await self._pool.run(job.tokenise)
        observer.stage("tokenise", time.perf_counter() - began)
        if len(prompts) * parameters.n > settings.max_choices:
            raise BadRequest(
                f"`n` is {parameters.n} for {len(prompts)} prompts: at most {settings.max_choices} choices are made.",
                param="n",
            )
        if not all(prompts):
            raise BadRequest(f"`{job.param}` has no tokens: give some text.", param=job.param)
        wanted = requests(
            parameters,
            prompts,
            id=exchange.id,
            model=model,
            principal=principal,
            settings=settings,
            elapsed_s=exchange.elapsed_s,
            traceparent=observer.traceparent,
            param=job.param,
        )
        promised_s = parameters.promise.ttft_s(max(map(len, prompts), default=0))
        exchange.deadline_ms = None if promised_s is None else 1000 * promised_s
        for request in wanted:
            observer.asked(request, tenant=principal.tenant.name, key=principal.key_id, stream=parameters.stream)
        generations = await exchange.awaiting(self._admit(exchange, wanted, principal.key_id))
        run = Answering(exchange, generations, model, parameters, job)
        try:
            await (run.stream() if parameters.stream else run.whole())
        except GenerationFailed as error:
            run.failed()
            # Told at once: closing what is left may take as long as a dead scheduler takes to be noticed.
            await exchange.fail(
                ApiError(f"The generation failed: {error}.", status=500, type="server_error", code="generation_failed")
            )
        finally:
            await run.close()

    async def _admit(self, exchange: Exchange, wanted: Sequence[Request], key: str) -> list[Generation]:
        """All of them, or none."""
        patience_s = self._settings.patience_s
        if exchange.hints.read_timeout_s is not None:
            patience_s = min(patience_s, max(exchange.hints.read_timeout_s - exchange.elapsed_s, 0.0))
        generations: list[Generation] = []

        async def admit(request: Request) -> None:
            began = time.perf_counter()
            try:
                generation = await self._frontend.admit(
                    request, key=key, patience_s=patience_s, retries=exchange.hints.retries
                )
            except Refused as refused:
                exchange.observer.decided(request, refused.decision, time.perf_counter() - began)
                raise
            generations.append(generation)
            exchange.observer.decided(request, generation.decision, time.perf_counter() - began)

        try:
            await together([admit(request) for request in wanted])
        except BaseException as error:
            await all_ended([generation.close() for generation in generations])
            if isinstance(error, Refused):
                raise refusal(error.decision) from error
            raise
        order = {request.id: index for index, request in enumerate(wanted)}
        generations.sort(key=lambda generation: order[generation.request.id])
        exchange.decisions = [generation.decision for generation in generations]
        return generations
