"""Blocks whose request is elsewhere: its KV is on its way here, or from here to another worker.

No step touches what is coming, so such blocks need no fence; what goes is fenced by the last step that touched it.
"""

from __future__ import annotations

from policies.blocks import BlockPool
from policies.vocabulary import BLOCK_SIZE

__all__ = ["Transit"]


class Transit:
    """Device blocks by request."""

    __slots__ = ("_blocks", "_device", "_fences", "held")

    def __init__(self, device: BlockPool) -> None:
        self._device = device
        self._blocks: dict[str, list[int]] = {}
        self._fences: dict[str, int] = {}
        self.held = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._blocks

    def missing(self, request_id: str, tokens: int) -> int:
        """Blocks that the first `tokens` tokens of a request take beyond those that it has."""
        return max(0, -(-tokens // BLOCK_SIZE) - len(self.blocks(request_id)))

    def blocks(self, request_id: str) -> list[int]:
        """Those of a request, for its positions 0, 16, 32, …"""
        return self._blocks.get(request_id, [])

    def extend(self, request_id: str, count: int) -> None:
        """`count` more blocks for what is to come. The caller looked whether they are free."""
        self._blocks.setdefault(request_id, []).extend(self._device.take(count))
        self.held += count

    def keep(self, request_id: str, blocks: list[int], *, fence: int) -> None:
        """Held blocks of a request that leaves: they stay until `give_back`."""
        self.give_back(request_id)
        self._blocks[request_id] = blocks
        self._fences[request_id] = fence
        self.held += len(blocks)

    def take(self, request_id: str) -> list[int]:
        """The blocks of a request, which are its row's from now on."""
        blocks = self._blocks.pop(request_id, [])
        self._fences.pop(request_id, None)
        self.held -= len(blocks)
        return blocks

    def give_back(self, request_id: str) -> None:
        """Nobody comes, or all is sent: the blocks are free. Unknown requests are ignored."""
        fence = self._fences.get(request_id, 0)
        self._device.release(reversed(self.take(request_id)), fence=fence)

    def all_blocks(self) -> list[int]:
        """Those of all requests."""
        return [block for blocks in self._blocks.values() for block in blocks]
