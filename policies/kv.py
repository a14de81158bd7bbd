"""Where the KV of every row lives: device blocks, host blocks, and the prefixes that outlive their requests.

The rules that keep contents right:

- A block enters the prefix index only when its 16 tokens are acknowledged, and only full blocks do, so a shared block
  is never written again.
- The last known token of a row is always computed: it is what the next output is sampled from.
- Whatever a row gives up is fenced by the last step that touches it (`row.touched`), on the host as on the device.
- A swap-out copies what the steps in flight will have written too, since the worker runs it after them. Coming back,
  what the prefix index still has is shared, and only the rest is copied in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policies.blocks import BlockPool
from policies.prefix import PrefixIndex, extend_chain
from policies.rows import Row
from policies.vocabulary import BLOCK_SIZE

__all__ = ["KvMemory", "NameBlocks", "Start", "blocks_for", "hash_names"]

#: Appends to `row.chain` until it names the first n full blocks of the row's tokens.
NameBlocks = Callable[[Row, int], None]


def hash_names(row: Row, blocks: int) -> None:
    """Names by content: the chained hash of all tokens up to the end of each block."""
    extend_chain(row.chain, row.tokens, row.request.salt, blocks)


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


class Start(NamedTuple):
    """What it takes to put a waiting row into a slot."""

    hits: list[int]  # resident blocks of its longest known prefix
    computed: int  # tokens that need no computing: the hits, or what the host saved
    fresh: int  # blocks to take
    cost: int  # blocks that leave the free list: the fresh ones, and hits that nobody holds


class KvMemory:
    """The block pools of one worker and the index over them. `names` says how blocks are named."""

    __slots__ = ("_names", "device", "host", "index")

    def __init__(self, blocks: int, host_blocks: int, *, names: NameBlocks = hash_names) -> None:
        self._names = names
        self.index = PrefixIndex(blocks)
        self.device = BlockPool(blocks, on_reuse=self.index.forget)
        self.host = BlockPool(host_blocks)

    @property
    def supply(self) -> int:
        """Device blocks that are free, or will be once the steps in flight are acknowledged."""
        return self.device.free + self.device.fenced

    def look(self, row: Row) -> Start:
        """What starting this waiting row would take now. Changes nothing but the row's memory of its own chain."""
        known = len(row.tokens)
        limit = (known - 1) // BLOCK_SIZE
        if len(row.chain) < limit:
            self._names(row, limit)
        hits = self.index.match(row.chain, limit)
        device = self.device
        fresh = blocks_for(known) - len(hits)
        unheld = sum(1 for block in hits if device.is_free(block))
        return Start(hits, max(len(hits) * BLOCK_SIZE, row.saved), fresh, fresh + unheld)

    def start(self, row: Row, start: Start, step: int) -> list[tuple[int, int]]:
        """Give a row blocks for all its known tokens; returns the swap-ins. `start` is what `look` said just now."""
        device = self.device
        for block in start.hits:
            device.share(block)
        row.blocks = start.hits + device.take(start.fresh)
        row.room = len(row.blocks) * BLOCK_SIZE
        row.registered = len(start.hits)
        row.computed = start.computed
        row.touched = step
        copies: list[tuple[int, int]] = []
        if row.host_blocks:
            copies = list(zip(row.host_blocks, row.blocks, strict=False))[len(start.hits) :]
            self.drop_saved(row)
        return copies

    def grow(self, row: Row) -> int:
        """One more block for a row."""
        block = self.device.take_one()
        row.blocks.append(block)
        row.room += BLOCK_SIZE
        return block

    def register(self, row: Row) -> None:
        """Tell the index of the blocks of a row that are full and acknowledged by now."""
        full = row.computed // BLOCK_SIZE
        if full > len(row.chain):
            self._names(row, full)
        kept, first = self.device.kept, row.registered
        row.registered = full
        if full == first + 1:
            if self.index.put_one(row.chain[first], row.blocks[first]):
                kept[row.blocks[first]] = 1
            return
        for block in self.index.put(row.chain[first:full], row.blocks[first:full]):
            kept[block] = 1

    def release(self, row: Row) -> None:
        """Give up a row's device blocks, tail first."""
        self.device.release(reversed(row.blocks), fence=row.touched)
        row.blocks = []
        row.room = row.registered = 0

    def swap_out(self, row: Row, step: int) -> list[tuple[int, int]]:
        """Move a row to the host in step `step`; returns the copies. The caller looked whether the host has room."""
        row.saved = row.position
        row.host_blocks = self.host.take(blocks_for(row.saved))
        row.touched = step
        copies = list(zip(row.blocks, row.host_blocks, strict=False))
        self.release(row)
        return copies

    def drop_saved(self, row: Row) -> None:
        """Give up a row's host blocks."""
        if row.host_blocks:
            self.host.release(row.host_blocks, fence=row.touched)
            row.host_blocks = []
        row.saved = 0

    def freed_by(self, row: Row) -> int:
        """Device blocks that releasing a row would free."""
        refs = self.device.refs
        return sum(1 for block in row.blocks if refs[block] == 1)

    def acknowledge(self, step: int) -> None:
        """Step `step` is done: lift its fences."""
        self.device.acknowledge(step)
        self.host.acknowledge(step)
