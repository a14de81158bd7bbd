"""What placement knows: of a request before it runs, and of a worker as it stands.

A view is kept up by events (`policies.placement.book`) and not built from a report of every request, so that placing
among 1,000 workers costs about as much as placing among ten.
"""

from __future__ import annotations

from collections.abc import Hashable
from hashlib import blake2b
from typing import NamedTuple

from policies.step_time import step_time
from policies.vocabulary import BLOCK_SIZE, Request, Tier, WorkerSpec

__all__ = ["PREFIX_SPAN", "Ask", "WorkerView", "ask_of", "blocks_of"]

#: Tokens to a name of a prefix: coarse, since a hit of a few blocks changes no placement.
PREFIX_SPAN = 128


class Ask(NamedTuple):
    """A request that needs a worker."""

    id: str
    tokens: int  # known: the prompt, and what an earlier attempt generated
    end: int  # tokens at its longest
    outputs: int  # still expected; at most `end - tokens`
    tier: int = int(Tier.default)
    worker: str = ""  # that admission chose for it: taken while it lives
    prefix: tuple[Hashable, ...] = ()  # names of its leading spans, each standing for all before it too
    affinity: bytes = b""  # requests that begin alike have the same
    attempt: int = 1


def ask_of(request: Request, *, prefix: bool = False) -> Ask:
    """What placement needs of a request. `prefix`: with names, about 1 µs for each 128 tokens of the prompt."""
    prompt, seen = len(request.prompt) // 4, len(request.generated) // 4
    expected = min(request.expected_outputs or request.max_tokens, request.max_tokens)
    return Ask(
        request.id,
        prompt + seen,
        prompt + request.max_tokens,
        max(1, expected - seen),
        request.tier,
        request.worker,
        _names(request) if prefix else (),
        request.salt + request.prompt[: 4 * BLOCK_SIZE],
        request.attempt,
    )


def _names(request: Request) -> tuple[bytes, ...]:
    parent = blake2b(request.salt, digest_size=16, person=b"headgate-place").digest()
    names = []
    width = 4 * PREFIX_SPAN
    for begin in range(0, len(request.prompt) - width + 1, width):
        parent = blake2b(parent + request.prompt[begin : begin + width], digest_size=16).digest()
        names.append(parent)
    return tuple(names)


def blocks_of(tokens: int) -> int:
    """KV blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


class WorkerView:
    """A worker in figures that cost nothing to read. Only its book writes them."""

    __slots__ = (
        "context",
        "draining",
        "outputs",
        "priority",
        "queued",
        "rank",
        "running",
        "spec",
        "used_blocks",
        "waiting",
        "worker",
    )

    def __init__(self, worker: str, spec: WorkerSpec, *, rank: float) -> None:
        self.worker = worker
        self.spec = spec
        self.rank = rank  # orders equals: by chance, but always the same
        self.queued = 0  # tokens of prompts that are still to be computed
        self.outputs = 0  # tokens that its requests are still expected to generate, those begun in full
        self.running = 0  # requests that had a slot
        self.context = 0  # known tokens of those when they came
        self.priority = 0  # of the running, those of the priority tier
        self.used_blocks = 0
        self.waiting: dict[str, int] = {}  # requests that had no slot yet: blocks that they need; oldest first
        self.draining = False

    @property
    def pending(self) -> int:
        """Tokens still to be computed or generated: what Splitwise's join-the-shortest-queue compares."""
        return self.queued + self.outputs

    def can_hold(self, ask: Ask) -> bool:
        """Whether it could ever serve the request."""
        return ask.end <= self.spec.max_context and blocks_of(ask.end - 1) <= self.spec.blocks

    def decode_s(self) -> float:
        """A step of its running requests and one more, by the figures of its own start-up benchmark."""
        rows = self.running + 1
        return step_time(self.spec.step_time, rows, 0.0, self.context, rows)

    def first_token_s(self, tokens: int, *, cached: int = 0) -> float:
        """Roughly when a request of so many tokens, `cached` of them here already, would have its first output.

        A fluid mean: the prompts ahead and its own at what steps leave, and the wait for slots and blocks as if they
        were released evenly. For comparing workers, not for promises.
        """
        spec, fresh = self.spec, max(1, tokens - cached)
        room = max(1, spec.tokens_per_step - self.running)
        steps = -(-(self.queued + fresh) // room)
        compute_s = spec.step_time.per_token_s * (self.queued + fresh)
        attended_s = spec.step_time.per_attended_s * fresh * (cached + fresh / 2)
        return (steps + self._release_steps(fresh)) * self.decode_s() + compute_s + attended_s

    def _release_steps(self, fresh: int) -> float:
        if not self.running:
            return 0.0
        known = self.running + len(self.waiting)
        slots = known + 1 - self.spec.slots
        blocks = self.used_blocks + sum(self.waiting.values()) + blocks_of(fresh) - self.spec.blocks
        each = max(1.0, self.used_blocks / self.running)
        short = max(float(slots), blocks / each)
        return max(0.0, short) * (self.outputs / known) / self.running
