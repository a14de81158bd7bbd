"""A step's rows as arrays: one packed sequence of tokens, no padding.

Built on the host with numpy; on CUDA all of it goes up in one copy from a ring of pinned buffers as deep as the steps
in flight. The token ids themselves are gathered on the device, since the newest may not have left it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gpu_worker.slots import Row
from policies.vocabulary import BLOCK_SIZE

__all__ = ["Batch", "BatchBuilder", "Segments"]

Int32 = npt.NDArray[np.int32]


@dataclass(slots=True)
class Segments:
    """Rows of queries over paged contexts, on the device (int32) and, with the prefix `host_`, as numpy."""

    query_start: torch.Tensor  # [rows + 1], prefix sums of the query lengths
    context_len: torch.Tensor  # [rows], the row's own new tokens included
    block_tables: torch.Tensor  # [rows, blocks of the longest]
    host_query_start: Int32
    host_context_len: Int32
    host_block_tables: Int32
    max_query_len: int
    max_context_len: int

    @property
    def rows(self) -> int:
        return len(self.host_context_len)


@dataclass(slots=True)
class Batch:
    """What one forward pass reads."""

    token_index: torch.Tensor  # [tokens], where in the flat token table the ids are
    positions: torch.Tensor  # [tokens]
    slot_mapping: torch.Tensor  # [tokens], block x 16 + offset where K and V go
    all: Segments
    last: torch.Tensor  # [sampling rows], the tokens whose logits are wanted
    sampling: Segments  # those tokens alone, as rows of one query
    host_positions: Int32
    host_slot_mapping: Int32
    host_last: Int32
    target: torch.Tensor  # [sampling rows], where in the flat token table their tokens go
    everything_samples: bool  # a step of decodes alone

    @property
    def tokens(self) -> int:
        return len(self.host_positions)


class BatchBuilder:
    """Keeps the block tables of the slots, and makes batches of rows."""

    def __init__(self, *, slots: int, max_context: int, device: torch.device, depth: int = 3) -> None:
        self.stride = max_context + 1
        self._tables: Int32 = np.zeros((slots, -(-self.stride // BLOCK_SIZE) + 1), np.int32)
        self._device = device
        self._pinned: list[torch.Tensor | None] = [None] * depth
        self._turn = 0

    def set_blocks(self, slot: int, blocks: list[int]) -> None:
        """A slot's whole block table."""
        self._tables[slot, : len(blocks)] = blocks

    def grow(self, slot: int, at: int, block: int) -> None:
        """One block more, at index `at` of a slot's table."""
        self._tables[slot, at] = block

    def build(self, rows: list[Row]) -> Batch:
        """The arrays of at least one row."""
        slots = np.array([row.slot.index for row in rows], np.int32)
        starts = np.array([row.start for row in rows], np.int32)
        counts = np.array([row.count for row in rows], np.int32)
        samples = np.array([row.samples for row in rows], bool)
        ends = starts + counts
        query_start = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        of_row = np.repeat(np.arange(len(rows)), counts)
        positions = np.arange(query_start[-1], dtype=np.int32) + (starts - query_start[:-1])[of_row]
        longest = int(ends.max())
        tables = self._tables[slots, : -(-longest // BLOCK_SIZE)]
        slot_mapping = tables[of_row, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        token_index = slots[of_row] * self.stride + positions
        last = query_start[1:][samples] - 1
        sampled_tables, sampled_ends = tables[samples], ends[samples]
        arrays = [
            token_index,
            positions,
            slot_mapping,
            query_start,
            ends,
            tables,
            last,
            np.arange(len(last) + 1, dtype=np.int32),
            sampled_ends,
            sampled_tables,
            slots[samples] * self.stride + sampled_ends,
        ]
        up = self._upload([np.ascontiguousarray(a, dtype=np.int32) for a in arrays])
        everything = Segments(up[3], up[4], up[5], query_start, ends, arrays[5], int(counts.max()), longest)
        sampling = Segments(
            up[7], up[8], up[9], arrays[7], sampled_ends, arrays[9], 1, int(sampled_ends.max()) if len(last) else 0
        )
        return Batch(
            up[0],
            up[1],
            up[2],
            everything,
            up[6],
            sampling,
            positions,
            slot_mapping,
            last,
            up[10],
            bool(samples.all()) and int(query_start[-1]) == len(rows),
        )

    def _upload(self, arrays: list[Int32]) -> list[torch.Tensor]:
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        total = sum(array.size for array in arrays)
        pinned = self._pinned[self._turn]
        if pinned is None or pinned.numel() < total:
            pinned = torch.empty(max(total, 1 << 14), dtype=torch.int32, pin_memory=True)
            self._pinned[self._turn] = pinned
        self._turn = (self._turn + 1) % len(self._pinned)
        np.concatenate([array.ravel() for array in arrays], out=pinned.numpy()[:total])
        flat = pinned[:total].to(self._device, non_blocking=True)
        sizes = [array.size for array in arrays]
        return [part.view(array.shape) for part, array in zip(torch.split(flat, sizes), arrays, strict=True)]
