"""Where the KV of every row lives: device blocks, host blocks, and the prefixes that outlive their requests.

The rules that keep contents right:

- A block enters the prefix index only when its 16 tokens are acknowledged, and only full blocks do, so a shared block
  is never written again.
- The last known token of a row is always computed: it is what the next output is sampled from.
- Whatever a row gives up is fenced by the last step that touches it (`row.touched`), on the host as on the device.
- A row that waits may keep blocks at its head, and have others on the host: its first `row.saved` tokens have KV in
  either. What comes after a gap is given up, since nothing would compute the gap alone.
- A swap-out copies what the steps in flight will have written too, since the worker runs it after them. Coming back,
  what the prefix index still has is shared, and only the rest is copied in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policies.blocks import BlockPool
from policies.prefix import PrefixIndex, extend_chain
from policies.rows import Row
from policies.transit import Transit
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

    hits: list[int]  # resident blocks that go on where its own end
    computed: int  # tokens that need no computing: held, hit, or saved on the host
    fresh: int  # blocks to take
    cost: int  # blocks that leave the free list: the fresh ones, and hits that nobody holds


class KvMemory:
    """The block pools of one worker and the index over them.

    `names` says how blocks are named. With `keep_copies`, what is copied in from the host stays there too, so that it
    need not be copied out again, until the host needs the room. Without `share`, nobody finds another's blocks.
    """

    __slots__ = ("_keep_copies", "_names", "_share", "copied", "device", "host", "index", "keepers", "transit")

    def __init__(
        self,
        blocks: int,
        host_blocks: int,
        *,
        names: NameBlocks = hash_names,
        keep_copies: bool = False,
        share: bool = True,
    ) -> None:
        self._names = names
        self._keep_copies = keep_copies
        self._share = share
        self.index = PrefixIndex()
        self.device = BlockPool(blocks, on_reuse=self.index.forget)
        self.host = BlockPool(host_blocks)
        self.transit = Transit(self.device)
        self.keepers: dict[Row, None] = {}  # rows that wait, with device blocks
        self.copied: dict[Row, None] = {}  # rows that run, with copies on the host; the oldest copies first

    @property
    def supply(self) -> int:
        """Device blocks that are free, or will be once the steps in flight are acknowledged."""
        return self.device.free + self.device.fenced

    def look(self, row: Row) -> Start:
        """What starting this waiting row would take now. Changes nothing but the row's memory of its own chain."""
        known, held = len(row.tokens), len(row.blocks)
        limit = (known - 1) // BLOCK_SIZE
        if len(row.chain) < limit:
            self._names(row, limit)
        hits: list[int] = []
        if self._share and held * BLOCK_SIZE <= row.saved:  # else its last block is not full: what follows is its own
            hits = self.index.match(row.chain[held:] if held else row.chain, limit - held)
        device = self.device
        fresh = blocks_for(known) - held - len(hits)
        unheld = sum(1 for block in hits if device.is_free(block))
        return Start(hits, max((held + len(hits)) * BLOCK_SIZE if hits else 0, row.saved), fresh, fresh + unheld)

    def start(self, row: Row, start: Start, step: int) -> list[tuple[int, int]]:
        """Give a row blocks for all its known tokens; returns the swap-ins. `start` is what `look` said just now."""
        device, saved, host = self.device, row.saved, row.host_blocks
        for block in start.hits:
            device.share(block)
        resident = len(row.blocks) + len(start.hits)
        row.registered = resident if start.hits else min(row.registered, resident)
        row.blocks += start.hits
        row.blocks += device.take(start.fresh)
        row.room = len(row.blocks) * BLOCK_SIZE
        row.computed = start.computed
        row.touched = step
        row.saved = 0
        self.keepers.pop(row, None)
        copies: list[tuple[int, int]] = []
        if host:
            copies = [(host[i], row.blocks[i]) for i in range(resident, blocks_for(saved))]
            if copies:
                row.host_touched = step
            self._drop_copies(row, since=saved // BLOCK_SIZE if self._keep_copies else 0)
            if host:
                self.copied[row] = None
        return copies

    def adopt(self, row: Row, blocks: list[int], tokens: int) -> None:
        """A row is about to wait with its KV: that of its first `tokens` tokens is in `blocks`, held for it."""
        keep = blocks_for(tokens)
        row.blocks = blocks
        row.computed = row.saved = tokens
        self.release(row, keep=keep)
        if keep:
            self.keepers[row] = None
            self.register(row)

    def lend(self, row: Row) -> None:
        """A row leaves with its KV: its device blocks stay held, without it, until they are given back."""
        self.transit.keep(row.request.id, row.blocks, fence=row.touched)
        row.blocks = []
        row.room = row.registered = 0
        self.keepers.pop(row, None)

    def grow(self, row: Row) -> int:
        """One more block for a row."""
        block = self.device.take_one()
        row.blocks.append(block)
        row.room += BLOCK_SIZE
        return block

    def register(self, row: Row) -> None:
        """Tell the index of the blocks of a row that are full and acknowledged by now."""
        full = row.computed // BLOCK_SIZE
        if full > len(row.blocks):  # of a row that waits, more may be on the host
            full = len(row.blocks)
        if not self._share:
            row.registered = full
            return
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

    def release(self, row: Row, *, keep: int = 0) -> None:
        """Give up a row's device blocks, tail first, but for the first `keep`."""
        blocks = row.blocks
        self.device.release(reversed(blocks[keep:] if keep else blocks), fence=row.touched)
        row.blocks = blocks[:keep]
        row.room = keep * BLOCK_SIZE
        row.registered = min(row.registered, keep)
        if not keep:
            self.keepers.pop(row, None)

    def give_up(self, row: Row, tokens: int, step: int, *, keep: int, copy: bool) -> list[tuple[int, int]]:
        """Take from a waiting row, of whose tokens `tokens` have KV, all device blocks but the first `keep`.

        With `copy` they are moved to the host in step `step`: returns the copies, which see what the steps in flight
        write. The caller looked whether the host has room. Otherwise what no copy exists of is lost: `row.saved` is
        what remains. If that is not all, nothing of what is in flight counts any more.
        """
        host, end = row.host_blocks, blocks_for(tokens)
        keep = min(keep, end)
        copies: list[tuple[int, int]] = []
        self.copied.pop(row, None)
        if copy:
            missing = [i for i in range(keep, min(end, len(row.blocks))) if i not in host]
            if missing:
                host.update(zip(missing, self.host.take(len(missing)), strict=True))
                copies = [(row.blocks[i], host[i]) for i in missing]
                row.touched = row.host_touched = step
        row.saved = self.covered(row, tokens, keep=keep)
        if row.saved < tokens:
            row.saved = min(row.saved, row.computed)
            row.computed = row.saved
            row.stale = row.in_flight
            self._drop_copies(row, since=blocks_for(row.saved))
        self.release(row, keep=keep)
        if keep:
            self.keepers[row] = None
        return copies

    def uncopied(self, row: Row, tokens: int, *, keep: int) -> int:
        """Blocks to copy to the host if a row with so many `tokens` moves all but `keep` blocks there."""
        end = min(blocks_for(tokens), len(row.blocks))
        return sum(1 for place in range(keep, end) if place not in row.host_blocks)

    def covered(self, row: Row, tokens: int, *, keep: int) -> int:
        """How many of its `tokens` a row would still have with `keep` device blocks and its copies."""
        host = row.host_blocks
        while keep in host:
            keep += 1
        return min(tokens, keep * BLOCK_SIZE)

    def copy_out(self, row: Row, places: list[int], step: int) -> list[tuple[int, int]]:
        """Copy full, acknowledged blocks of a row that runs on to the host in step `step`; returns the copies."""
        taken = self.host.take(len(places))
        row.host_blocks.update(zip(places, taken, strict=True))
        row.touched = row.host_touched = step
        self.copied[row] = None
        return [(row.blocks[place], block) for place, block in zip(places, taken, strict=True)]

    def host_room(self, *, but: Row) -> int:
        """Host blocks that are free, or hold no more than copies of rows that run, of all `but` one."""
        return self.host.free + sum(len(row.host_blocks) for row in self.copied if row is not but)

    def make_host_room(self, blocks: int, *, but: Row) -> bool:
        """Whether so many host blocks are free now, if need be after forgetting such copies, the oldest first."""
        if self.host.free < blocks:
            for row in [row for row in self.copied if row is not but]:
                del self.copied[row]
                self._drop_copies(row, since=0)
                if self.host.free >= blocks:
                    break
        return self.host.free >= blocks

    def drop_saved(self, row: Row) -> None:
        """Give up a row's host blocks."""
        self.copied.pop(row, None)
        if row.host_blocks:
            self._drop_copies(row, since=0)
        row.saved = 0

    def _drop_copies(self, row: Row, *, since: int) -> None:
        """Give up the host blocks of a row from place `since` on."""
        host = row.host_blocks
        places = [place for place in host if place >= since]
        self.host.release([host.pop(place) for place in places], fence=row.host_touched)

    def tail(self, row: Row, blocks: int) -> tuple[int, int]:
        """(blocks to keep, blocks freed) if a row gives up as little of its tail as frees `blocks`, or all it can.

        Blocks that others hold too free nothing, so those at its head stay.
        """
        refs, keep, freed = self.device.refs, len(row.blocks), 0
        for place in range(len(row.blocks) - 1, -1, -1):
            if freed >= blocks:
                break
            if refs[row.blocks[place]] == 1:
                keep, freed = place, freed + 1
        return keep, freed

    def freed_by(self, row: Row) -> int:
        """Device blocks that releasing a row would free."""
        refs = self.device.refs
        return sum(1 for block in row.blocks if refs[block] == 1)

    def acknowledge(self, step: int) -> None:
        """Step `step` is done: lift its fences."""
        self.device.acknowledge(step)
        self.host.acknowledge(step)
