"""The words that every part of Headgate shares: one small file, read first.

These are the plain data that cross the seams between the pure core, the actors and the engine. They carry no behaviour
beyond packing and what a promise comes to. Times are seconds as floats; instants never cross a process border,
remaining times do.

Token ids travel as packed little-endian int32 (`bytes`), because a prompt of 8,192 ids decodes 50 times faster so than
as a list of msgpack integers, and an idle gateway never looks at them.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from enum import IntEnum

import msgspec

__all__ = [
    "BLOCK_SIZE",
    "Contract",
    "Finish",
    "Limits",
    "NewRow",
    "Request",
    "RequestLoad",
    "Sampling",
    "Step",
    "StepDone",
    "StepTimeCoefficients",
    "Tenant",
    "Tier",
    "WorkerLoad",
    "WorkerSpec",
    "pack_tokens",
    "unpack_tokens",
]

#: Tokens in a KV block. A power of two that fits one page load of the attention kernels.
BLOCK_SIZE = 16


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    packed = array("i", tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(packed: bytes) -> list[int]:
    """The ids that `pack_tokens` packed."""
    tokens = array("i")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tolist()


class Tier(IntEnum):
    """Priority class: a lower value is served first. `flex` has no contract and may be shed."""

    priority = 0
    default = 1
    flex = 2


class Finish(IntEnum):
    """Why a request is over. `none` while it is not."""

    none = 0
    stop = 1  # EOS, a stop token or (found by the gateway) a stop string
    length = 2  # max_tokens
    cancelled = 3  # the client left, or its gateway died
    error = 4  # cannot be served: see the message that carries it


class Contract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant is promised. None means no promise on that figure."""

    tier: str = "default"
    ttft_ms: float | None = None  # to the first token, from arrival at the gateway
    tpot_ms: float | None = None  # each later token, on average over the request
    attainment: float = 0.99  # share of the admitted that keeps both
    weight: float = 1.0  # share inside the tier
    #: Added to `ttft_ms` for every 1,000 prompt tokens: one figure for all lengths is either lax for short prompts or a
    #: lie for long ones. Without `ttft_ms` nothing is promised, and it has no effect.
    ttft_per_1k_ms: float = 0.0

    def ttft_s(self, prompt_tokens: int) -> float | None:
        """What is promised to a prompt of so many tokens, in seconds from its arrival."""
        if self.ttft_ms is None:
            return None
        return (self.ttft_ms + self.ttft_per_1k_ms * prompt_tokens / 1000) / 1000


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The committed rate of a tenant. None means unlimited."""

    rpm: int | None = None  # requests a minute
    tpm: int | None = None  # prompt + output tokens a minute
    concurrency: int | None = None  # requests at once
    daily_tokens: int | None = None  # prompt + output tokens a UTC day


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A customer or team. `group` names whose prefix cache it shares; by default its own alone."""

    name: str
    contract: Contract = Contract()
    limits: Limits = Limits()
    group: str | None = None
    created: str = ""  # ISO 8601, UTC


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are drawn. The seed is always set: the gateway draws one where the client gave none.

    The generator is counter-based, keyed by (seed, position), so a request that is resumed elsewhere draws the same.
    """

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int = -1  # -1: none; n >= 0: that of the chosen token, and the n most likely
    min_tokens: int = 0  # no stop token before so many outputs
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()  # EOS ids of the model are added by the gateway


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One generation, as the gateway submits it.

    A resumed request (attempt > 1) carries in `generated` exactly the tokens that its client has seen.
    """

    id: str
    attempt: int
    tenant: str
    model: str
    gateway: str  # instance that owns the stream
    prompt: bytes  # packed ids, at least one
    max_tokens: int  # outputs in all, `generated` included
    sampling: Sampling
    tier: int = Tier.default
    ttft_s: float | None = None  # remaining time to the first token
    tpot_s: float | None = None
    salt: bytes = b""  # root of the prefix hash chain: the tenant group's
    generated: bytes = b""
    traceparent: str = ""
    weight: float = 1.0  # the tenant's share inside its tier
    worker: str = ""  # that admission chose: taken while it lives
    expected_outputs: int = 0  # in all, by its tenant's history; 0: only `max_tokens` is known


class NewRow(msgspec.Struct, frozen=True, array_like=True):
    """A request that enters a slot of a worker, in full: first time, resumed, or back from preemption.

    KV of the first `computed` tokens is already in `blocks` (a prefix hit, or swapped in by this very step).
    """

    slot: int
    request: str
    attempt: int
    gateway: str
    tokens: bytes  # packed ids: the prompt, then the outputs so far
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    blocks: list[int]  # device blocks that hold or will hold positions 0, 16, 32, …
    computed: int
    traceparent: str = ""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One forward pass, as a difference to the one before. The worker applies the parts in the order of the fields.

    Row i gives `counts[i]` more tokens of slot `slots[i]` to the model. A row whose tokens are all computed by that
    samples one token, which stays in the slot table for the next step; so a step may be sent before the one before it
    is done.
    """

    number: int  # consecutive from 1 after an attach
    drop: list[int]  # slots that end here; dropped before anything else of this step
    swap_out: list[tuple[int, int]]  # (device block, host block) copies
    swap_in: list[tuple[int, int]]  # (host block, device block) copies
    new: list[NewRow]
    slots: list[int]
    counts: list[int]
    grown: list[tuple[int, int]]  # (slot, device block): appended to that slot's block table, in order


class StepDone(msgspec.Struct, frozen=True, array_like=True):
    """What a step gave. Entry i: `slots[i]` sampled `tokens[i]`, and is over if `finished[i]` is not `Finish.none`.

    Rows that sampled nothing (a chunk of a prompt, or a request that an earlier step ended) are absent. A step with an
    `error` was refused whole: nothing was written.
    """

    number: int
    slots: list[int]
    tokens: list[int]
    finished: list[int]
    duration_s: float  # on the device
    error: str = ""


class StepTimeCoefficients(msgspec.Struct, frozen=True, array_like=True):
    """T = max(floor, base + per_token·tokens) + per_attended·Σ chunk·(context + chunk/2) + per_context·Σ decode
    context + per_row·rows.

    Seconds. The form is that of the published fits (see policies/step_time.py).
    """

    floor_s: float
    base_s: float
    per_token_s: float
    per_attended_s: float = 0.0
    per_context_s: float = 0.0
    per_row_s: float = 0.0


class WorkerSpec(msgspec.Struct, frozen=True, array_like=True):
    """What a worker can do, told when a scheduler attaches to it."""

    model: str
    device: str  # cpu, cuda or mock
    blocks: int  # device KV blocks
    host_blocks: int
    block_bytes: int  # KV bytes of one block, all layers
    slots: int  # rows at most
    tokens_per_step: int
    max_context: int  # prompt + output tokens of one request at most
    swap_bytes_per_s: float  # measured, device to host
    step_time: StepTimeCoefficients  # from the self-benchmark at start


class RequestLoad(msgspec.Struct, frozen=True, array_like=True):
    """One live request, as admission sees it. Remaining times are from the moment of the report."""

    id: str
    tier: int
    prefill_left: int  # tokens to compute before it can sample its next token (1: decoding)
    context: int  # tokens computed so far
    generated: int
    outputs_left: int  # at most
    first_token_in_s: float | None  # remaining to the TTFT deadline; None: had it, or no contract
    tpot_s: float | None
    lead_s: float  # how far its tokens are ahead of its pace; negative: behind
    waits: bool = False  # it has no slot: it has not begun, or was preempted


class WorkerLoad(msgspec.Struct, frozen=True, array_like=True):
    """State of one worker, published by the scheduler: what admission and placement look at."""

    worker: str
    model: str
    blocks: int
    free_blocks: int  # not held by a live request: free or only cached
    slots: int
    free_slots: int
    tokens_per_step: int
    max_context: int
    step_time: StepTimeCoefficients
    ratio_p50: float  # quantiles of actual over predicted step time
    ratio_p90: float
    ratio_p95: float
    requests: list[RequestLoad]
    #: What a simulation of this worker needs beside: see WorkerSpec.
    device: str = ""
    host_blocks: int = 0
    block_bytes: int = 0
    swap_bytes_per_s: float = 0.0
    steps_timed: int = 0  # that the step times were refitted on since this scheduler attached
    ratio_run_p90: float = 0.0  # of 16 steps in a row together; 0: not known
