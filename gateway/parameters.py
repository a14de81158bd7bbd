"""From what a client asks to what the engine is told: ranges, defaults, and the contract of this request.

Every refusal names the field, its value and what would be right. Nothing that is not supported gets through here.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.errors import BadRequest, ContextTooLong
from gateway.openai import ChatRequest, Common, CompletionRequest, ContractOverride
from gateway.principal import Principal
from gateway.settings import EdgeSettings
from gateway.text.tokenizer import ModelText
from policies.vocabulary import Contract, Request, Sampling, Tier, pack_tokens

__all__ = ["Parameters", "check", "logprobs_of_chat", "logprobs_of_completion", "requests"]

_SEED_BITS = 63  # seeds are non-negative 64-bit integers to the engine


@dataclass(frozen=True, slots=True)
class Parameters:
    """A valid request without its prompts. `sampling.seed` is that of choice 0; choice i draws with seed + i."""

    sampling: Sampling
    max_tokens: int | None  # None: what is left of the context, within the setting
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    tier: Tier
    promise: Contract  # the times of this request; its other fields are the tenant's


def check(
    body: Common,
    *,
    max_tokens: tuple[str, int | None],
    logprobs: int,
    model: ModelText,
    principal: Principal,
    settings: EdgeSettings,
) -> Parameters:
    """Check every parameter that both endpoints have. `max_tokens`: the field that gave it, and its value.

    :raises BadRequest: a value is out of its range or contradicts another.
    """
    field, most = max_tokens
    _integer(field, most, 1, model.max_context)
    min_tokens = _integer("min_tokens", body.min_tokens, 0, most or model.max_context) or 0
    top_k = _integer("top_k", body.top_k, -1, 2**31 - 1) or 0
    seed = _integer("seed", body.seed, -(2**63), 2**63 - 1)
    ignore_eos = bool(body.ignore_eos)
    sampling = Sampling(
        temperature=_number("temperature", body.temperature, 0.0, 2.0, 1.0),
        top_p=_number("top_p", body.top_p, 0.0, 1.0, 1.0, above=True),
        top_k=max(top_k, 0),
        min_p=_number("min_p", body.min_p, 0.0, 1.0, 0.0),
        seed=secrets.randbits(_SEED_BITS) if seed is None else seed % 2**_SEED_BITS,
        presence_penalty=_number("presence_penalty", body.presence_penalty, -2.0, 2.0, 0.0),
        frequency_penalty=_number("frequency_penalty", body.frequency_penalty, -2.0, 2.0, 0.0),
        repetition_penalty=_number("repetition_penalty", body.repetition_penalty, 0.0, 10.0, 1.0, above=True),
        logit_bias=_logit_bias(body.logit_bias or {}, model, settings),
        logprobs=logprobs,
        min_tokens=min_tokens,
        ignore_eos=ignore_eos,
        stop_token_ids=() if ignore_eos else model.eos_ids,
    )
    if body.stream_options is not None and not body.stream:
        raise BadRequest(
            "`stream_options` is given, but `stream` is not true: set it or leave the options out.",
            param="stream_options",
        )
    tier, promise = _contract(body, principal)
    return Parameters(
        sampling=sampling,
        max_tokens=most,
        n=_integer("n", body.n, 1, settings.max_n) or 1,
        stop=_stop(body.stop, settings),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        tier=tier,
        promise=promise,
    )


def logprobs_of_chat(body: ChatRequest, settings: EdgeSettings) -> int:
    """`Sampling.logprobs` of a chat request."""
    top = _integer("top_logprobs", body.top_logprobs, 0, settings.max_logprobs)
    if top is not None and not body.logprobs:
        raise BadRequest(f"`top_logprobs` is {top}, but `logprobs` is not true: set it too.", param="top_logprobs")
    return (top or 0) if body.logprobs else -1


def logprobs_of_completion(body: CompletionRequest, settings: EdgeSettings) -> int:
    """`Sampling.logprobs` of a text completion."""
    if body.echo:
        raise BadRequest("`echo` is true: answers never repeat the prompt here; leave it out.", param="echo")
    top = _integer("logprobs", body.logprobs, 0, settings.max_logprobs)
    return -1 if top is None else top


def requests(
    parameters: Parameters,
    prompts: Sequence[Sequence[int]],
    *,
    id: str,  # noqa: A002
    model: ModelText,
    principal: Principal,
    settings: EdgeSettings,
    elapsed_s: float,
    traceparent: str,
    param: str,
) -> list[Request]:
    """One engine request a choice, prompt by prompt. The deadline is what is left of it after `elapsed_s`.

    :raises ContextTooLong: a prompt does not leave room for its output.
    """
    made: list[Request] = []
    for prompt in prompts:
        room = model.max_context - len(prompt)
        if room < (parameters.max_tokens or 1):
            raise ContextTooLong(
                f"`{param}` has {len(prompt)} tokens and {parameters.max_tokens or 'at least 1'} more are asked for; "
                f"the context of {model.name} is {model.max_context} tokens.",
                param=param,
            )
        max_tokens = parameters.max_tokens or min(room, settings.default_max_tokens)
        packed = pack_tokens(prompt)
        ttft_s, tpot_ms = parameters.promise.ttft_s(len(prompt)), parameters.promise.tpot_ms
        for choice in range(parameters.n):
            index = len(made)
            made.append(
                Request(
                    id=f"{id}-{index}",
                    attempt=1,
                    tenant=principal.tenant.name,
                    model=model.name,
                    gateway=settings.gateway,
                    prompt=packed,
                    max_tokens=max_tokens,
                    sampling=_with_seed(parameters.sampling, choice),
                    tier=int(parameters.tier),
                    weight=principal.tenant.contract.weight,
                    ttft_s=None if ttft_s is None else max(ttft_s - elapsed_s, 0.0),
                    tpot_s=None if tpot_ms is None else tpot_ms / 1000,
                    salt=principal.salt,
                    traceparent=traceparent,
                )
            )
    return made


def _with_seed(sampling: Sampling, choice: int) -> Sampling:
    if choice == 0:
        return sampling
    fields = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
    return Sampling(**{**fields, "seed": (sampling.seed + choice) % 2**_SEED_BITS})


def _number(name: str, value: float | None, low: float, high: float, default: float, *, above: bool = False) -> float:
    """A number in [low, high], or in (low, high] if `above`."""
    if value is None:
        return default
    if not math.isfinite(value) or value > high or value < low or (above and value == low):
        least = f"above {low:g} and at most" if above else f"from {low:g} to"
        raise BadRequest(f"`{name}` is {value:g}: it must be {least} {high:g}.", param=name)
    return float(value)


def _integer(name: str, value: int | None, low: int, high: int) -> int | None:
    if value is not None and not low <= value <= high:
        raise BadRequest(f"`{name}` is {value}: it must be from {low} to {high}.", param=name)
    return value


def _logit_bias(bias: dict[str, float], model: ModelText, settings: EdgeSettings) -> tuple[tuple[int, float], ...]:
    if len(bias) > settings.max_logit_bias:
        raise BadRequest(
            f"`logit_bias` has {len(bias)} entries: at most {settings.max_logit_bias} are taken.", param="logit_bias"
        )
    last = model.vocabulary_size - 1
    for token in bias:
        if not (token.isascii() and token.isdigit()) or len(token) > 10 or int(token) > last:
            raise BadRequest(
                f'`logit_bias` has the key "{token[:40]}": keys must be token ids from 0 to {last}.',
                param="logit_bias",
            )
    return tuple((int(token), _number("logit_bias", value, -100.0, 100.0, 0.0)) for token, value in bias.items())


def _stop(stop: str | list[str] | None, settings: EdgeSettings) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > settings.max_stop:
        raise BadRequest(f"`stop` has {len(stops)} strings: at most {settings.max_stop} are taken.", param="stop")
    for text in stops:
        if not 1 <= len(text) <= settings.max_stop_chars:
            raise BadRequest(
                f"`stop` has a string of {len(text)} characters: it must be from 1 to {settings.max_stop_chars}.",
                param="stop",
            )
    return tuple(stops)


def _contract(body: Common, principal: Principal) -> tuple[Tier, Contract]:
    """Tier and times of this request: the tenant's contract within the key's ceiling, or looser."""
    contract = principal.tenant.contract
    best = Tier[contract.tier]
    if principal.tier_ceiling is not None:
        best = max(best, Tier[principal.tier_ceiling])
    tier = best
    if body.service_tier not in (None, "auto"):
        tier = Tier[str(body.service_tier)]
        if tier < best:
            raise BadRequest(
                f"`service_tier` is {body.service_tier}: this key may use {best.name} or what is less, or auto.",
                param="service_tier",
            )
    promise = _loosened(body.headgate or ContractOverride(), contract)
    if tier is Tier.flex:  # no contract, may be shed
        promise = msgspec.structs.replace(promise, ttft_ms=None, tpot_ms=None)
    return tier, promise


def _loosened(asked: ContractOverride, contract: Contract) -> Contract:
    """The contract with what was asked for, which is nowhere less than it promises.

    Each figure is held to its own, so that the answer is the same for every length of the prompt.
    """
    looser: dict[str, float] = {}
    for name, promised in (
        ("ttft_ms", contract.ttft_ms),
        ("ttft_per_1k_ms", None if contract.ttft_ms is None else contract.ttft_per_1k_ms),
        ("tpot_ms", contract.tpot_ms),
    ):
        value: float | None = getattr(asked, name)
        if value is None:
            continue
        field = f"headgate.{name}"
        _number(field, value, 0.0, 86_400_000.0, 0.0, above=name != "ttft_per_1k_ms")
        if promised is None or value < promised:
            right = (
                "promises none: leave it out" if promised is None else f"promises {promised:g}: ask for so much or more"
            )
            raise BadRequest(f"`{field}` is {value:g}, but the contract {right}.", param=field)
        looser[name] = float(value)
    return msgspec.structs.replace(contract, **looser)
