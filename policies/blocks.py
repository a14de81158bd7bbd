"""A pool of KV blocks: reference counts, an O(1) free list, and fences.

What is free is handed out in this order: blocks whose content nobody knows, those freed last first; those that were
never used; then those that an index still knows, least recently freed first. The last are forgotten only when they are
handed out again: eviction is lazy, and a free pool is a cache. One in the middle of this queue that a request shares
again leaves a dead entry, which is dropped when met: so that what a request takes or gives, some hundred blocks, moves
in bulk. What was never used takes no memory: a simulation has a thousand workers.

A fence is the number of the last step that touches a block. Until that step is acknowledged the block is *parked*:
nobody holds it, so it counts as free for whoever asks how full the pool is, but it is not handed out.

::

    held (refs > 0) --release, fence acknowledged--> free list --take--> held
          |  ^                                        ^     |
          |  +----------------- share ----------------|-----+   (only what is kept by an index)
          +--release, fence ahead--> parked --acknowledge
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from copy import deepcopy

from policies.errors import InvariantBroken, OutOfBlocks

__all__ = ["BlockPool"]


def _nothing(blocks: list[int]) -> None:
    """Nobody to tell."""


class BlockPool:
    """Blocks 0 … size - 1.

    `refs` counts who holds a block; of a parked one it is minus the step that it waits for. `on_reuse(blocks)` is
    called when kept blocks are handed out again, so that the index forgets them.
    """

    __slots__ = (
        "_dead",
        "_known",
        "_on_reuse",
        "_parked",
        "_shared_again",
        "_unknown",
        "acknowledged",
        "fenced",
        "free",
        "kept",
        "refs",
        "size",
    )

    def __init__(self, size: int, *, on_reuse: Callable[[list[int]], None] = _nothing) -> None:
        self.size = size
        self.refs: list[int] = []  # of the blocks that were used ever: the first ones
        self.kept = bytearray()  # of these; 1: an index knows the content
        self.free = size  # blocks that can be handed out
        self.fenced = 0  # blocks parked behind a step
        self.acknowledged = 0
        self._on_reuse = on_reuse
        self._parked: dict[int, list[int]] = {}
        self._shared_again = False  # some of the parked may not be parked any more, or be listed twice
        self._unknown: list[int] = []  # free, and not kept; the last goes first
        self._known: deque[int] = deque()  # free and kept, with dead entries
        self._dead: dict[int, int] = {}  # of each block in that queue, how many of its entries are dead: the first ones

    def __deepcopy__(self, memo: dict[int, object]) -> BlockPool:
        """Independent, in microseconds where a copy block by block takes tens of milliseconds."""
        other = memo[id(self)] = object.__new__(BlockPool)
        for name in BlockPool.__slots__:
            value = getattr(self, name)
            setattr(other, name, value.copy() if isinstance(value, list | bytearray | deque | dict) else value)
        other._parked = {step: blocks[:] for step, blocks in self._parked.items()}
        other._on_reuse = deepcopy(self._on_reuse, memo)
        return other

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return self.size - self.free - self.fenced

    def is_free(self, block: int) -> bool:
        """Whether a block is in the free list: not held, and not parked."""
        return not self.refs[block]

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks, each held once.

        :raises OutOfBlocks: if fewer are in the free list; nothing is taken then.
        """
        if count > self.free:
            raise OutOfBlocks(
                f"{count} blocks asked for, {self.free} of {self.size} are free ({self.fenced} are fenced)"
            )
        taken: list[int] = []
        if self._unknown or len(self.refs) < self.size:
            taken = self._take_unknown(count)
        pop, refs, kept = self._pop if self._dead else self._known.popleft, self.refs, self.kept
        taken += [pop() for _ in range(count - len(taken))]
        for block in taken:
            refs[block] = 1
        reused = [block for block in taken if kept[block]]
        if reused:
            for block in reused:
                kept[block] = 0
            self._on_reuse(reused)
        self.free -= count
        return taken

    def take_one(self) -> int:
        """As `take(1)`, at half its cost: rows grow by one block at a time.

        :raises OutOfBlocks: if none is in the free list.
        """
        if not self.free:
            raise OutOfBlocks(f"a block is asked for, none of {self.size} is free ({self.fenced} are fenced)")
        self.free -= 1
        refs = self.refs
        if self._unknown:
            block = self._unknown.pop()
        elif (block := len(refs)) < self.size:
            refs.append(1)
            self.kept.append(0)
            return block
        else:
            block = self._pop() if self._dead else self._known.popleft()
            self.kept[block] = 0
            self._on_reuse([block])
        refs[block] = 1
        return block

    def _take_unknown(self, most: int) -> list[int]:
        """Up to `most` blocks of no known content."""
        unknown, refs = self._unknown, self.refs
        taken = unknown[: -most - 1 : -1]
        del unknown[len(unknown) - len(taken) :]
        used = len(refs)
        if (fresh := min(most - len(taken), self.size - used)) > 0:
            taken += range(used, used + fresh)
            refs += [0] * fresh
            self.kept += bytes(fresh)
        return taken

    def _pop(self) -> int:
        """The first of the queue of the known."""
        dead = self._dead
        while (block := self._known.popleft()) in dead:
            if dead[block] > 1:
                dead[block] -= 1
            else:
                del dead[block]
        return block

    def share(self, block: int) -> None:
        """Hold a block once more. If nobody held it, it must be kept by an index: its content is still there."""
        refs = self.refs
        if block >= len(refs) or refs[block] <= 0:
            if block >= len(refs) or not self.kept[block]:
                raise InvariantBroken(f"block {block} is shared, but nobody holds it and no index knows its content")
            if refs[block]:
                self._shared_again = True
                self.fenced -= 1
                refs[block] = 0
            else:
                self._dead[block] = self._dead.get(block, 0) + 1
                self.free -= 1
        refs[block] += 1

    def release(self, blocks: Iterable[int], *, fence: int) -> None:
        """Hold each block once less. What nobody holds any more is free once step `fence` is acknowledged.

        Earlier blocks are reused earlier, so a request gives its tail first: a prefix outlives what follows it.
        """
        refs, given = self.refs, list(blocks)
        waits = -fence if fence > self.acknowledged else 0
        counts = [refs[block] for block in given]
        if counts.count(1) == len(counts):
            for block in given:
                refs[block] = waits
        else:
            given = self._shared_too(given, waits)
        if waits:
            self._parked.setdefault(fence, []).extend(given)
            self.fenced += len(given)
        else:
            self._link(given)

    def _shared_too(self, blocks: list[int], waits: int) -> list[int]:
        """Hold each block once less; returns those that nobody else holds."""
        refs, given = self.refs, []
        for block in blocks:
            count = refs[block] - 1
            if count < 0:
                raise InvariantBroken(f"block {block} is released, but nobody holds it")
            if count:
                refs[block] = count
            else:
                refs[block] = waits
                given.append(block)
        return given

    def acknowledge(self, step: int) -> None:
        """Step `step` is done, and so is every earlier one: what was parked behind it is free."""
        if self._parked:
            refs = self.refs
            for number in range(self.acknowledged + 1, step + 1):
                lifted = self._parked.pop(number, None)
                if lifted is None:
                    continue
                if self._shared_again:
                    lifted = [block for block in dict.fromkeys(lifted) if refs[block] == -number]
                    self._shared_again = bool(self._parked)
                for block in lifted:
                    refs[block] = 0
                self.fenced -= len(lifted)
                self._link(lifted)
        if step > self.acknowledged:
            self.acknowledged = step

    def _link(self, blocks: list[int]) -> None:
        """These are free. What may be asked for again is the last to be handed out, in this order."""
        kept = self.kept
        known = [block for block in blocks if kept[block]]
        self._known.extend(known)
        if len(known) < len(blocks):
            self._unknown.extend([block for block in blocks if not kept[block]])
        self.free += len(blocks)
        if len(self._known) > 2 * self.size:
            self._known = deque(self._alive())
            self._dead = {}

    def _alive(self) -> list[int]:
        """The known free blocks in order."""
        if not self._dead:
            return list(self._known)
        dead, alive = self._dead.copy(), []
        for block in self._known:
            if dead.get(block):
                dead[block] -= 1
            else:
                alive.append(block)
        return alive

    def check(self) -> None:
        """:raises InvariantBroken: if a block is lost, listed twice, or both free and held."""
        refs, known = self.refs, self._alive()
        listed = known + self._unknown
        for block in listed:
            if refs[block]:
                raise InvariantBroken(f"block {block} is in the free list: refs {refs[block]}")
        if not all(self.kept[block] for block in known) or any(self.kept[block] for block in self._unknown):
            raise InvariantBroken("a free block is listed among the known, and is not, or the other way round")
        unused = self.size - len(refs)
        seen = len(set(listed)) + unused
        fenced = sum(1 for count in refs if count < 0)
        held = sum(1 for count in refs if count > 0)
        if (seen, len(listed) + unused, fenced, seen + fenced + held) != (self.free, self.free, self.fenced, self.size):
            raise InvariantBroken(
                f"{seen} blocks are listed free and {fenced} parked, counted {self.free} and {self.fenced}; "
                f"{held} of {self.size} are held"
            )
