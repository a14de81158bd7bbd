"""Live migration of requests between workers: who, from where, to where, and how it is copied (Llumnix, OSDI'24).

Every so often the workers with the least freeness, under a low threshold, are paired with those that have the most,
above a high one; each source gives its pair's destination one request, of low priority and short. A pair moves a
request only if that narrows the gap between the two: 0 <= gap after < gap before. Without this rule two workers that
straddle the thresholds throw the same request to and fro for ever. With it, and since the source must gain by it, the
lower of the two is higher after every move: the sorted freenesses only ever grow, so a system in which nothing else
happens comes to rest.

The copy goes on while the request decodes, since KV is only ever appended: stage 0 copies the full blocks that exist,
stage k those that came while stage k - 1 was copied, and only for the last (a block at most) does the request stop. So
it stands still for about the same short time whatever its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from math import inf
from typing import NamedTuple

import msgspec

from policies.vocabulary import BLOCK_SIZE

__all__ = ["Balance", "Migration", "MigrationPolicy", "Movable", "Move", "Stage", "choose_moves", "gap_shrinks"]


class MigrationPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When requests move. Freeness is in blocks for each running request."""

    every_s: float = 0.2  # pairs are formed so often
    low: float = 4.0  # under this freeness a worker gives requests away ...
    high: float = 8.0  # ... to those above this one (benchmarks/experiments/claims.py: 32 hardly ever moved anybody)
    last_stage_tokens: int = BLOCK_SIZE  # the request stops when at most so much is left to copy
    max_stages: int = 8  # then it stays: the link does not catch up with the decoding
    gap_rule: bool = True  # a pair moves a request only if the gap between the two shrinks; False shows why


class Balance(NamedTuple):
    """A worker, as migration sees it."""

    worker: str
    blocks: int
    used: float  # virtual usage; inf: it is draining
    running: int
    free: int  # blocks that a copy can have now

    @property
    def freeness(self) -> float:
        """As in `policies.placement.freeness`."""
        return (self.blocks - self.used) / max(1, self.running)


class Movable(NamedTuple):
    """A running request that could move: decoding, with no other copy under way."""

    id: str
    tier: int
    blocks: int


class Move(NamedTuple):
    """One request, one pair."""

    request: str
    source: str
    destination: str


def choose_moves(
    workers: Sequence[Balance],
    movable: dict[str, list[Movable]],
    *,
    policy: MigrationPolicy,
    busy: Iterable[str] = (),
) -> list[Move]:
    """One move for each pair at most. `movable` by worker; `busy` workers take part in a copy already.

    A draining worker is a source whatever its freeness, and any other with room is good enough for it: it is to be
    emptied, so the gap does not matter. Ties go by name: equal inputs give equal moves.
    """
    taken = set(busy)
    free = [worker for worker in workers if worker.worker not in taken]
    sources = sorted((w for w in free if w.freeness < policy.low and movable.get(w.worker)), key=_by_freeness)
    destinations = sorted((w for w in free if w.used < inf), key=_by_freeness, reverse=True)
    moves: list[Move] = []
    for source in sources:
        least = -inf if source.used == inf else policy.high
        for at, destination in enumerate(destinations):
            if destination.worker == source.worker or destination.freeness <= least:
                continue
            request = _candidate(source, destination, movable[source.worker], policy)
            if request is not None:
                moves.append(Move(request.id, source.worker, destination.worker))
                del destinations[at]
                break
    receiving = {move.destination for move in moves}
    return [move for move in moves if move.source not in receiving]


def _by_freeness(worker: Balance) -> tuple[float, str]:
    return worker.freeness, worker.worker


def _candidate(
    source: Balance, destination: Balance, movable: list[Movable], policy: MigrationPolicy
) -> Movable | None:
    """The first in the order lowest class, shortest, that fits and narrows the gap."""
    for request in sorted(movable, key=lambda request: (-request.tier, request.blocks, request.id)):
        if request.blocks + 1 > destination.free:
            continue
        if source.used == inf or not policy.gap_rule or gap_shrinks(source, destination, request.blocks):
            return request
    return None


def gap_shrinks(source: Balance, destination: Balance, blocks: int) -> bool:
    """Whether moving a running request of `blocks` helps the source, leaves the destination no worse off than that, and
    the two nearer to each other: 0 <= gap after < gap before."""
    before = destination.freeness - source.freeness
    left = source._replace(used=source.used - blocks, running=max(0, source.running - 1))
    got = destination._replace(used=destination.used + blocks, running=destination.running + 1)
    return left.freeness > source.freeness and 0 <= got.freeness - left.freeness < before


class Stage(Enum):
    """Where a migration is."""

    reserving = "reserving"  # the destination is asked for room
    copying = "copying"  # while the request decodes at the source
    stopping = "stopping"  # the source is to let it go, as soon as no step touches it
    finishing = "finishing"  # the last stage: it runs nowhere
    done = "done"  # it runs at the destination
    aborted = "aborted"  # it never left the source, or was over


class Migration:
    """One request on its way: a state machine that does nothing itself.

    Its driver asks the destination for room (`want`), tells the answer (`reserved`), copies `copy` tokens, and tells
    when that is done (`copied`) with the tokens that the source has computed by then. At `stopping` it takes the
    request from the source (`stopped`), copies the rest, and lets it go on at the destination when the machine is
    `done`. The request is at the source until `stopped`, in nobody's hands until `done`, then at the destination.
    What was copied before that must not be used.
    """

    def __init__(self, move: Move, *, computed: int, policy: MigrationPolicy) -> None:
        self.move = move
        self.stage = Stage.reserving
        self.stages = 0  # copies begun
        self.sent = 0  # tokens that are at the destination
        self.copy = 0  # tokens of the copy under way
        self.why = ""  # it was aborted
        self._policy = policy
        self._target = self._whole(computed)

    @property
    def want(self) -> int:
        """Tokens that the destination must have room for: those of this stage, what may be left for the last, and what
        the steps in flight add until the request has stopped."""
        return self._target + self._policy.last_stage_tokens + BLOCK_SIZE

    def reserved(self, *, granted: bool) -> None:
        """The destination has room for `want` tokens, or not: then it is over, and the source notices nothing."""
        self._expect(Stage.reserving)
        if not granted:
            self.abort("no room at the destination")
            return
        self.stage = Stage.copying
        self.stages += 1
        self.copy = self._target - self.sent

    def copied(self, computed: int) -> None:
        """The copy under way is done. `computed`: tokens whose KV the source has by now."""
        if self.stage is Stage.finishing:
            self.sent += self.copy
            self.copy = 0
            self.stage = Stage.done
            return
        self._expect(Stage.copying)
        self.sent += self.copy
        self.copy = 0
        left = computed - self.sent
        if left <= self._policy.last_stage_tokens:
            self.stage = Stage.stopping
        elif self.stages >= self._policy.max_stages:
            self.abort(f"{left} tokens are left after {self.stages} copies: the link is too slow")
        else:
            self.stage = Stage.reserving
            self._target = self._whole(computed)

    def stopped(self, computed: int) -> None:
        """The source has let it go with KV of `computed` tokens. The rest is copied now.

        :raises ValueError: if that is more than `want`: the driver took too long to stop it.
        """
        self._expect(Stage.stopping)
        if computed > self.want:
            raise ValueError(f"{self.move.request} has {computed} tokens, the destination has room for {self.want}")
        self.stage = Stage.finishing
        self.stages += 1
        self.copy = max(0, computed - self.sent)

    def abort(self, why: str) -> None:
        """The request ended or was preempted at the source, or there is no room: give up what the destination holds.

        :raises ValueError: if the source has let it go already.
        """
        if self.stage in (Stage.finishing, Stage.done):
            raise ValueError(
                f"{self.move.request} is {self.stage.value}: it cannot stay at {self.move.source} any more"
            )
        self.stage, self.why, self.copy = Stage.aborted, why, 0

    def _expect(self, stage: Stage) -> None:
        if self.stage is not stage:
            raise ValueError(f"{self.move.request} is {self.stage.value}, not {stage.value}")

    @staticmethod
    def _whole(tokens: int) -> int:
        return tokens // BLOCK_SIZE * BLOCK_SIZE
