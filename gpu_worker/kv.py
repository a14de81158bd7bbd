"""KV pools on the device and on the host, and the copies between them.

A pool is `[blocks, layers, 2, kv_heads, 16, head_dim]`: all layers of a block are one run of memory, so that a block
moves in one copy, and a head's page of a layer is one run, so that decode attention streams it.

On CUDA the copies run on a stream of their own. A swap-out waits for the steps before it; a block with a copy under way
is waited for by the first step that uses it again, and by no other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gpu_worker.config import ModelConfig
from gpu_worker.errors import DeviceOutOfMemory
from policies.vocabulary import BLOCK_SIZE

__all__ = ["KvPools"]


class KvPools:
    """The device pool, with one block more than `blocks` for what is to be thrown away, and the host pool.

    :raises DeviceOutOfMemory: a pool does not fit.
    """

    def __init__(
        self, config: ModelConfig, *, blocks: int, host_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.blocks = blocks
        self.host_blocks = host_blocks
        self.trash = blocks
        block = (config.layers, 2, config.kv_heads, BLOCK_SIZE, config.head_dim)
        self.block_bytes = config.kv_elements_per_block(BLOCK_SIZE) * dtype.itemsize
        try:
            make = torch.zeros if device.type == "cuda" else torch.empty  # the CPU gives pages when they are written
            self.device_pool = make((blocks + 1, *block), dtype=dtype, device=device)
            pinned = device.type == "cuda" and host_blocks > 0
            self.host_pool = torch.empty((host_blocks, *block), dtype=dtype, pin_memory=pinned)
        except (RuntimeError, MemoryError) as error:
            raise DeviceOutOfMemory(
                f"{blocks} device and {host_blocks} host blocks of {self.block_bytes} bytes do not fit: {error}"
            ) from None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pending: dict[int, torch.cuda.Event] = {}  # device block: its copy under way

    def swap(self, out: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
        """Copy `out` (device block, host block), then `back` (host block, device block)."""
        if not out and not back:
            return
        if self._stream is None:
            self._copy(self.host_pool, self.device_pool, [(host, block) for block, host in out])
            self._copy(self.device_pool, self.host_pool, [(block, host) for host, block in back])
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device_pool.device))
        with torch.cuda.stream(self._stream):
            self._copy(self.host_pool, self.device_pool, [(host, block) for block, host in out])
            self._copy(self.device_pool, self.host_pool, [(block, host) for host, block in back])
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        for block in [block for block, _ in out] + [block for _, block in back]:
            self._pending[block] = done

    def _copy(self, to: torch.Tensor, source: torch.Tensor, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks (to, source), one copy for each run that is consecutive on both sides."""
        for target, origin, length in _runs(pairs):
            to[target : target + length].copy_(source[origin : origin + length], non_blocking=True)

    def before_use(self, blocks: Iterable[int]) -> None:
        """Make the steps that follow wait for copies of these blocks that are under way."""
        if not self._pending:
            return
        waited = set()
        for block in blocks:
            event = self._pending.pop(block, None)
            if event is not None and event not in waited:
                waited.add(event)
                torch.cuda.current_stream(self.device_pool.device).wait_event(event)

    def poison(self, blocks: Iterable[int]) -> None:
        """Fill blocks with NaN, so that a read of a freed block shows."""
        for block in blocks:
            self.device_pool[block].fill_(float("nan"))


def _runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for target, origin in pairs:
        if runs and runs[-1][0] + runs[-1][2] == target and runs[-1][1] + runs[-1][2] == origin:
            runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((target, origin, 1))
    return runs
