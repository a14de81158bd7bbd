"""A live request inside a scheduler: its counters, and where it is.

There is no phase. A row has tokens (the prompt, then the outputs known so far), and a step computes KV for some more of
them; prefill, a chunk of one, decode, and recompute after preemption are all that. Three integers that must never be
confused count KV:

- `computed`: in the row's blocks, and acknowledged;
- `in_flight`: given to steps that are not acknowledged yet;
- `stale`: those of `in_flight` whose KV the row has given up since (it was preempted, cancelled, or is over).

Since steps are planned ahead of their results, outputs are also promised before they are known: `left` counts the
outputs that may still be *planned*, so a row with `left == 0` is surely over with what is in flight and is not planned
again.
"""

from __future__ import annotations

import sys
from array import array
from copy import deepcopy
from enum import IntEnum
from math import inf

from policies.errors import WorkerMismatch
from policies.pace import aimed_s
from policies.vocabulary import Finish, Request, Step, StepDone

__all__ = ["Flight", "Place", "Row"]


class Place(IntEnum):
    """The one list that holds a row."""

    waiting = 0
    prefilling = 1  # in a slot, has known tokens that are in no step yet
    decoding = 2  # in a slot, one token at a time
    draining = 3  # in a slot, its last output is in flight
    over = 4


class Row:
    """The state of one request. Plain data: whoever holds the row keeps it consistent."""

    __slots__ = (
        "blocks",
        "cached_tokens",
        "chain",
        "charged",
        "computed",
        "deadline",
        "end",
        "finish",
        "first_scheduled_at",
        "first_token_at",
        "host_blocks",
        "host_touched",
        "in_flight",
        "left",
        "place",
        "preemptions",
        "prompt_tokens",
        "queued_at",
        "registered",
        "request",
        "room",
        "saved",
        "seen",
        "sequence",
        "slot",
        "stale",
        "started",
        "ticket",
        "tier",
        "tokens",
        "touched",
        "tpot_s",
        "waiting_since",
    )

    def __init__(self, request: Request, *, sequence: int, now: float) -> None:
        self.request = request
        self.prompt_tokens = len(request.prompt) // 4
        self.tokens = _array(request.prompt + request.generated)
        self.seen = len(self.tokens) - self.prompt_tokens  # outputs that an earlier attempt gave
        self.end = self.prompt_tokens + request.max_tokens  # tokens when the request surely is over
        self.computed = 0
        self.in_flight = 0
        self.stale = 0
        self.left = self.end - len(self.tokens)

        self.place = Place.waiting
        self.slot = -1
        self.blocks: list[int] = []
        self.room = 0  # tokens that `blocks` hold
        self.registered = 0  # blocks that the prefix index was told of
        self.chain: list[bytes] = []  # names of the full blocks, as far as they were asked for
        self.host_blocks: dict[int, int] = {}  # by place in the row: host copies of blocks that are final or given up
        self.host_touched = 0  # the last step that touches its host blocks
        self.saved = 0  # while it waits: tokens that have KV, in `blocks`, then in `host_blocks`
        self.touched = 0  # the last step that touches its blocks
        self.started = 0  # the step that gave it its slot
        self.preemptions = 0
        self.ticket = 0  # its present entry in the waiting queue; 0: none
        self.charged = 0  # outputs that its tenant's fair share was charged for

        self.tier = request.tier
        self.tpot_s = request.tpot_s
        self.deadline = inf if request.ttft_s is None or self.seen else now + request.ttft_s
        self.sequence = sequence  # order of arrival
        self.queued_at = now
        self.waiting_since = now
        self.first_scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.cached_tokens = 0
        self.finish = Finish.none

    def __deepcopy__(self, memo: dict[int, object]) -> Row:
        """Independent, but for the request, which is immutable: copies of a simulation have thousands of rows."""
        other = memo[id(self)] = object.__new__(Row)
        for name in Row.__slots__:
            value = getattr(self, name)
            if isinstance(value, list | dict):
                value = value.copy()
            setattr(other, name, value[:] if isinstance(value, array) else value)
        return other

    @property
    def generated(self) -> int:
        """Outputs that are known, those of earlier attempts included."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def position(self) -> int:
        """Tokens given to the model so far: the position of the next one."""
        return self.computed + self.in_flight

    @property
    def outputs_left(self) -> int:
        """Outputs that it is still to be given: by what was foretold of its length, else at most."""
        expected = self.request.expected_outputs - self.request.max_tokens + self.left
        return min(expected, self.left) if expected > 0 else self.left

    @property
    def behind(self) -> int:
        """Tokens to give to the model before it samples one that is not promised yet."""
        return self.end - self.left - self.computed - self.in_flight

    def lead_s(self, now: float) -> float:
        """How long before it was due its last output came, by the pace aimed at; negative: so far behind."""
        if self.tpot_s is None or self.first_token_at is None:
            return 0.0
        return self.first_token_at + (self.generated - self.seen - 1) * aimed_s(self.tpot_s) - now


def _array(packed: bytes) -> array[int]:
    """As `unpack_tokens`, without a list between."""
    tokens = array("i")
    tokens.frombytes(packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


class Flight:
    """A step that is planned but not acknowledged, with the rows that were in its slots then."""

    __slots__ = ("attended", "context", "decodes", "rows", "samples", "step", "tokens")

    def __init__(self, step: Step, rows: list[Row], samples: list[bool], decodes: int) -> None:
        self.step = step
        self.rows = rows  # in the order of step.slots
        self.samples = samples  # for the rows after the first `decodes`: whether the chunk ends what is known
        self.decodes = decodes
        self.tokens = 0
        self.attended = 0.0
        self.context = 0

    def __deepcopy__(self, memo: dict[int, object]) -> Flight:
        """The step and the counts never change; the rows do."""
        rows = [deepcopy(row, memo) for row in self.rows]
        other = memo[id(self)] = Flight(self.step, rows, self.samples, self.decodes)
        other.tokens, other.attended, other.context = self.tokens, self.attended, self.context
        return other

    def align(self, done: StepDone) -> tuple[list[int | None], list[int]]:
        """Tokens and finishes in the order of the step's rows; None and 0 where a row is absent.

        :raises WorkerMismatch: if there are results for slots that the step did not run.
        """
        missing = set(self.step.slots).difference(done.slots)
        if len(missing) + len(done.slots) == len(self.rows):
            # As a rule a few rows have ended, and the others stand in the order of the step.
            tokens: list[int | None] = [*done.tokens]
            order, finished = done.slots[:], done.finished[:]
            for at in sorted(map(self.step.slots.index, missing)):
                order.insert(at, self.step.slots[at])
                tokens.insert(at, None)
                finished.insert(at, 0)
            if order == self.step.slots:
                return tokens, finished
        return self._align(done)

    def _align(self, done: StepDone) -> tuple[list[int | None], list[int]]:
        at = {slot: i for i, slot in enumerate(done.slots)}
        tokens: list[int | None] = [None] * len(self.rows)
        finished = [0] * len(self.rows)
        for row, slot in enumerate(self.step.slots):
            i = at.pop(slot, None)
            if i is not None:
                tokens[row], finished[row] = done.tokens[i], done.finished[i]
        if at:
            raise WorkerMismatch(f"step {done.number}: results for slots {sorted(at)}, which it did not run")
        return tokens, finished
