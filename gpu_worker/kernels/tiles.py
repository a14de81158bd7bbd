"""Tile sizes of the attention kernel, in a table.

The best tile depends on the GPU, the head dimension, the dtype and the regime, and on nothing that changes while
serving. So it is looked up, never tuned on live shapes: tuning stalls the first requests, captures badly in a CUDA
graph and makes two runs of one prompt differ. A sweep on an idle GPU edits this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache

import torch

__all__ = ["Regime", "Tile", "arch_of", "processors_of", "tile_for"]

INTERPRETED_PROCESSORS = 1  # one: on a CPU there is nothing for extra splits to fill


class Regime(Enum):
    """DECODE: few query rows, bound by reading KV. PREFILL: many query rows, bound by the tensor cores."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class Tile:
    """`rows` of (query, head) pairs against `tokens` of KV at a time, by `warps` warps, loads `stages` deep."""

    rows: int
    tokens: int
    warps: int
    stages: int


# (compute capability major, head dimension padded to a power of two, regime, bytes an element) -> Tile.
# Decode: 16 rows are the least a tensor core takes; 32 tokens and deep pipelining keep about 48 KiB of loads in flight
# a program, three programs a processor, where 29 KiB a processor already cover the latency of HBM at full rate.
# Prefill: 128 rows amortise each KV tile; at head dimension 256 the accumulator leaves room for 64.
_TABLE: dict[tuple[int, int, Regime, int], Tile] = {
    (9, 64, Regime.DECODE, 2): Tile(16, 64, 4, 4),
    (9, 128, Regime.DECODE, 2): Tile(16, 32, 4, 4),
    (9, 256, Regime.DECODE, 2): Tile(16, 32, 4, 3),
    (9, 64, Regime.PREFILL, 2): Tile(128, 64, 4, 3),
    (9, 128, Regime.PREFILL, 2): Tile(128, 64, 8, 2),
    (9, 256, Regime.PREFILL, 2): Tile(64, 64, 8, 2),
    (10, 64, Regime.DECODE, 2): Tile(16, 64, 4, 4),
    (10, 128, Regime.DECODE, 2): Tile(16, 32, 4, 4),
    (10, 256, Regime.DECODE, 2): Tile(16, 32, 4, 3),
    (10, 64, Regime.PREFILL, 2): Tile(128, 64, 4, 3),
    (10, 128, Regime.PREFILL, 2): Tile(128, 64, 8, 2),
    (10, 256, Regime.PREFILL, 2): Tile(64, 64, 8, 2),
    (8, 64, Regime.DECODE, 2): Tile(16, 32, 4, 4),
    (8, 128, Regime.DECODE, 2): Tile(16, 32, 4, 3),
    (8, 256, Regime.DECODE, 2): Tile(16, 32, 4, 2),
    (8, 64, Regime.PREFILL, 2): Tile(128, 64, 4, 2),
    (8, 128, Regime.PREFILL, 2): Tile(128, 64, 8, 2),
    (8, 256, Regime.PREFILL, 2): Tile(64, 32, 8, 2),
}
# fp32 runs on the plain ALUs ("ieee"), for tests and debugging: small tiles that fit everywhere.
_FALLBACK = {Regime.DECODE: Tile(16, 32, 4, 2), Regime.PREFILL: Tile(32, 32, 8, 1)}


def tile_for(device: torch.device, *, head_dim: int, regime: Regime, dtype: torch.dtype) -> Tile:
    """The tile for this device and head dimension; a safe small one where the table has no entry."""
    padded = max(16, 1 << (head_dim - 1).bit_length())
    return _TABLE.get((arch_of(device)[0], padded, regime, dtype.itemsize), _FALLBACK[regime])


@cache
def arch_of(device: torch.device) -> tuple[int, int]:
    """Compute capability (major, minor); (0, 0) for a CPU, where the kernels run in Triton's interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of the device, for the choice of how far to split long contexts."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
