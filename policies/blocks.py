"""A pool of KV blocks: reference counts, an O(1) free list, and fences.

The free list is doubly linked through two arrays, with one sentinel, so that a cached block in its middle can be taken
out when a request shares it again (the design of vLLM's free queue). Blocks that an index still knows wait at the tail,
least recently freed first, and are forgotten only when they are handed out again: eviction is lazy, and a free pool is
a cache.

A fence is the number of the last step that touches a block. Until that step is acknowledged the block is *parked*:
nobody holds it, so it counts as free for whoever asks how full the pool is, but it is not handed out.

::

    held (refs > 0) --release, fence acknowledged--> free list --take--> held
          |  ^                                        ^     |
          |  +----------------- share ----------------|-----+   (only what is kept by an index)
          +--release, fence ahead--> parked --acknowledge
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

from policies.errors import InvariantBroken, OutOfBlocks

__all__ = ["BlockPool"]


def _nothing(blocks: list[int]) -> None:
    """Nobody to tell."""


class BlockPool:
    """Blocks 0 … size - 1.

    `on_reuse(blocks)` is called when kept blocks are handed out again, so that the index forgets them.
    """

    __slots__ = (
        "_fences",
        "_next",
        "_on_reuse",
        "_parked",
        "_previous",
        "acknowledged",
        "fenced",
        "free",
        "kept",
        "refs",
        "size",
    )

    def __init__(self, size: int, *, on_reuse: Callable[[list[int]], None] = _nothing) -> None:
        self.size = size
        self.refs = [0] * size
        self.kept = bytearray(size)  # 1: an index knows the content
        self.free = size  # blocks in the free list
        self.fenced = 0  # blocks parked behind a step
        self.acknowledged = 0
        self._on_reuse = on_reuse
        self._fences = [0] * size  # 0: not parked
        self._parked: dict[int, list[int]] = {}
        self._next: list[int] = [*range(1, size + 1), 0]  # the sentinel is entry `size`
        self._previous: list[int] = [size, *range(size)]

    def __deepcopy__(self, memo: dict[int, object]) -> BlockPool:
        """Independent, in microseconds where a copy block by block takes tens of milliseconds."""
        other = memo[id(self)] = object.__new__(BlockPool)
        for name in BlockPool.__slots__:
            value = getattr(self, name)
            setattr(other, name, value[:] if isinstance(value, list | bytearray) else value)
        other._parked = {step: blocks[:] for step, blocks in self._parked.items()}
        other._on_reuse = deepcopy(self._on_reuse, memo)
        return other

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return self.size - self.free - self.fenced

    def is_free(self, block: int) -> bool:
        """Whether a block is in the free list: not held, and not parked."""
        return not self.refs[block] and not self._fences[block]

    def take(self, count: int) -> list[int]:
        """Hand out `count` blocks, each held once.

        :raises OutOfBlocks: if fewer are in the free list; nothing is taken then.
        """
        if count > self.free:
            raise OutOfBlocks(
                f"{count} blocks asked for, {self.free} of {self.size} are free ({self.fenced} are fenced)"
            )
        following, refs, kept, sentinel = self._next, self.refs, self.kept, self.size
        taken = []
        block = following[sentinel]
        for _ in range(count):
            taken.append(block)
            refs[block] = 1
            block = following[block]
        reused = [block for block in taken if kept[block]]
        if reused:
            for known in reused:
                kept[known] = 0
            self._on_reuse(reused)
        following[sentinel] = block
        self._previous[block] = sentinel
        self.free -= count
        return taken

    def take_one(self) -> int:
        """As `take(1)`, at half its cost: rows grow by one block at a time.

        :raises OutOfBlocks: if none is in the free list.
        """
        following, sentinel = self._next, self.size
        block = following[sentinel]
        if block == sentinel:
            raise OutOfBlocks(f"a block is asked for, none of {sentinel} is free ({self.fenced} are fenced)")
        self.refs[block] = 1
        if self.kept[block]:
            self.kept[block] = 0
            self._on_reuse([block])
        following[sentinel] = after = following[block]
        self._previous[after] = sentinel
        self.free -= 1
        return block

    def share(self, block: int) -> None:
        """Hold a block once more. If nobody held it, it must be kept by an index: its content is still there."""
        if not self.refs[block]:
            if not self.kept[block]:
                raise InvariantBroken(f"block {block} is shared, but nobody holds it and no index knows its content")
            if self._fences[block]:
                self._fences[block] = 0
                self.fenced -= 1
            else:
                self._unlink(block)
        self.refs[block] += 1

    def release(self, blocks: Iterable[int], *, fence: int) -> None:
        """Hold each block once less. What nobody holds any more is free once step `fence` is acknowledged.

        Earlier blocks are reused earlier, so a request gives its tail first: a prefix outlives what follows it.
        """
        refs, given = self.refs, []
        for block in blocks:
            count = refs[block] - 1
            if count < 0:
                raise InvariantBroken(f"block {block} is released, but nobody holds it")
            refs[block] = count
            if not count:
                given.append(block)
        if fence <= self.acknowledged:
            self._link(given)
            return
        fences = self._fences
        for block in given:
            fences[block] = fence
        self._parked.setdefault(fence, []).extend(given)
        self.fenced += len(given)

    def acknowledge(self, step: int) -> None:
        """Step `step` is done, and so is every earlier one: what was parked behind it is free."""
        fences = self._fences
        for number in range(self.acknowledged + 1, step + 1) if self._parked else ():
            lifted = []
            for block in self._parked.pop(number, ()):
                if fences[block] == number:  # else it was shared again meanwhile
                    fences[block] = 0
                    lifted.append(block)
            self.fenced -= len(lifted)
            self._link(lifted)
        self.acknowledged = max(self.acknowledged, step)

    def _link(self, blocks: list[int]) -> None:
        """To the tail, in this order, what may be asked for again; the rest to the head, the last of it first."""
        following, previous, kept, sentinel = self._next, self._previous, self.kept, self.size
        tail = previous[sentinel]
        for block in blocks:
            if kept[block]:
                following[tail] = block
                previous[block] = tail
                tail = block
        following[tail] = sentinel
        previous[sentinel] = tail
        head = following[sentinel]
        for block in blocks:
            if not kept[block]:
                previous[head] = block
                following[block] = head
                head = block
        following[sentinel] = head
        previous[head] = sentinel
        self.free += len(blocks)

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self.free -= 1

    def check(self) -> None:
        """:raises InvariantBroken: if a block is lost, listed twice, or both free and held."""
        seen, block, before = 0, self._next[self.size], self.size
        while block != self.size:
            if self.refs[block] or self._fences[block] or self._previous[block] != before or seen > self.size:
                raise InvariantBroken(
                    f"block {block} in the free list: refs {self.refs[block]}, fence {self._fences[block]}"
                )
            seen, before, block = seen + 1, block, self._next[block]
        fenced = sum(1 for fence in self._fences if fence)
        held = sum(1 for count in self.refs if count)
        if (seen, fenced, seen + fenced + held) != (self.free, self.fenced, self.size):
            raise InvariantBroken(
                f"{seen} blocks are listed free and {fenced} parked, counted {self.free} and {self.fenced}; "
                f"{held} of {self.size} are held"
            )
