"""The prefix cache: which block holds the KV of which tokens after which prefix.

A block is named by a chained hash: that of its 16 tokens and of the name of the block before it, so equal names mean
equal prefixes from the very first token. The chain starts from the salt of the tenant's group: two groups never share a
block, and the time to the first token tells nobody what another group asked. The map is flat (vLLM's design, not a
radix tree).

A block enters only once its tokens are computed and acknowledged, and leaves when its pool hands it out again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from hashlib import blake2b

from policies.errors import InvariantBroken
from policies.vocabulary import BLOCK_SIZE

__all__ = ["PrefixIndex", "extend_chain"]

_DIGEST_BYTES = 16


def extend_chain(chain: list[bytes], tokens: array[int], salt: bytes, blocks: int) -> None:
    """Append to `chain` until it names the first `blocks` full blocks of `tokens`.

    About 1 µs a block. Names compare equal across processes of the same byte order.
    """
    parent = chain[-1] if chain else blake2b(salt, digest_size=_DIGEST_BYTES, person=b"headgate-root").digest()
    start = len(chain)
    packed = tokens[start * BLOCK_SIZE : blocks * BLOCK_SIZE].tobytes()
    width = BLOCK_SIZE * tokens.itemsize
    for offset in range(0, (blocks - start) * width, width):
        parent = blake2b(parent + packed[offset : offset + width], digest_size=_DIGEST_BYTES).digest()
        chain.append(parent)


class PrefixIndex:
    """A flat map from a block's name to the block."""

    __slots__ = ("_blocks", "_names")

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}  # by block

    def __deepcopy__(self, memo: dict[int, object]) -> PrefixIndex:
        other = memo[id(self)] = object.__new__(PrefixIndex)
        other._blocks, other._names = self._blocks.copy(), self._names.copy()
        return other

    def __len__(self) -> int:
        return len(self._blocks)

    def put(self, names: list[bytes], blocks: list[int]) -> list[int]:
        """Register blocks whose content is final; returns them without those whose content another block has."""
        if self._blocks.keys().isdisjoint(names):
            self._blocks.update(zip(names, blocks, strict=True))
            self._names.update(zip(blocks, names, strict=True))
            return blocks
        setdefault, named, taken = self._blocks.setdefault, self._names, []
        for name, block in zip(names, blocks, strict=True):
            if setdefault(name, block) == block:
                named[block] = name
                taken.append(block)
        return taken

    def put_one(self, name: bytes, block: int) -> bool:
        """As `put`, of one: whether no other block has that content."""
        if self._blocks.setdefault(name, block) != block:
            return False
        self._names[block] = name
        return True

    def forget(self, blocks: Iterable[int]) -> None:
        """These blocks are handed out again, so their content is about to go."""
        named, known = self._names, self._blocks
        for block in blocks:
            name = named.pop(block, None)
            if name is not None:
                del known[name]

    def match(self, chain: list[bytes], limit: int) -> list[int]:
        """The resident blocks of the longest known prefix, at most `limit`."""
        found: list[int] = []
        get = self._blocks.get
        for name in chain[:limit]:
            block = get(name)
            if block is None:
                break
            found.append(block)
        return found

    def check(self) -> None:
        """:raises InvariantBroken: if the map and its inverse differ."""
        inverse = {name: block for block, name in self._names.items()}
        if inverse != self._blocks:
            raise InvariantBroken(f"{len(self._blocks)} names are mapped, {len(self._names)} blocks are named")
