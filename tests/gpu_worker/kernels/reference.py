"""What the attention kernels must compute, in the plainest torch: one row at a time, everything in fp32.

Also the batches it is computed for. A pool holds NaN wherever no row of the batch may look: in other layers, in blocks
of nobody, and in the slots of a last block past the context.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Batch", "attention_reference", "huge_pool", "make_batch"]

PAGE = 16
LAYERS = 2
LAYER = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Arguments of `paged_attention`, by the names of its parameters."""

    q: torch.Tensor
    kv_pool: torch.Tensor
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    max_query_len: int
    max_context_len: int

    @property
    def layer(self) -> int:
        return LAYER

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)


def make_batch(
    rows: Sequence[tuple[int, int]],
    *,
    group: int = 2,
    kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    shared_blocks: int = 0,
    padding_tokens: int = 0,
) -> Batch:
    """A random batch of rows given as (query_len, context_len), its blocks scattered over the pool.

    All rows with enough context share their first `shared_blocks` blocks.
    """
    draw = torch.Generator().manual_seed(seed)
    needed = [-(-context // PAGE) for _, context in rows]
    spare = 3
    blocks = sum(needed) + spare
    order = torch.randperm(blocks, generator=draw).tolist()
    nobody = order.pop()  # a block full of NaN, where the unused entries of the tables point
    shared = [order.pop() for _ in range(shared_blocks)] if shared_blocks <= max(needed, default=0) else []
    tables = torch.full((len(rows), max([*needed, 1]) + 1), nobody, dtype=torch.int32)
    pool = torch.full((blocks, LAYERS, 2, kv_heads, PAGE, head_dim), float("nan"))
    for row, (_, context) in enumerate(rows):
        for index in range(needed[row]):
            block = shared[index] if index < len(shared) and len(shared) <= needed[row] else order.pop()
            tables[row, index] = block
            filled = min(PAGE, context - index * PAGE)
            if pool[block, LAYER, 0, 0, :filled].isnan().any():
                pool[block, LAYER, :, :, :filled] = torch.randn(2, kv_heads, filled, head_dim, generator=draw)
    lengths = torch.tensor([0, *(query for query, _ in rows)])
    tokens = int(lengths.sum()) + padding_tokens
    return Batch(
        q=torch.randn(tokens, group * kv_heads, head_dim, generator=draw).to(device, dtype),
        kv_pool=pool.to(device, dtype),
        block_tables=tables.to(device),
        query_start=lengths.cumsum(0).to(device, torch.int32),
        context_len=torch.tensor([context for _, context in rows], dtype=torch.int32, device=device),
        max_query_len=max(query for query, _ in rows),
        max_context_len=max(context for _, context in rows),
    )


def attention_reference(batch: Batch) -> torch.Tensor:
    """`[tokens, heads, head_dim]` in fp32 on the CPU; tokens of no row are NaN."""
    q = batch.q.float().cpu()
    starts, contexts = batch.query_start.tolist(), batch.context_len.tolist()
    kv_heads = batch.kv_pool.shape[3]
    out = torch.full_like(q, float("nan"))
    for row, context in enumerate(contexts):
        first, last = starts[row], starts[row + 1]
        if first == last:
            continue
        blocks = batch.block_tables[row, : -(-context // PAGE)].long()
        pages = batch.kv_pool[blocks, batch.layer].float().cpu()  # [blocks, 2, kv_heads, page, head_dim]
        keys, values = pages.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
        group = q.shape[1] // kv_heads
        keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
        scores = torch.einsum("qhd,hkd->hqk", q[first:last], keys) * batch.scale
        position = torch.arange(context - (last - first), context)
        unseen = torch.arange(context)[None, :] > position[:, None]
        weights = scores.masked_fill(unseen, float("-inf")).softmax(-1)
        out[first:last] = torch.einsum("hqk,hkd->qhd", weights, values)
    return out


def huge_pool(blocks: int, kv_heads: int, head_dim: int) -> torch.Tensor:
    """A float16 pool of one layer, in address space that takes memory only where it is written.

    2^31 elements lie before it, so that an offset that wrapped around finds zeros, and fails a test, not the process.
    """
    shape = (blocks, 1, 2, kv_heads, PAGE, head_dim)
    before = 2 * 2**31
    size = before + 2 * blocks * 2 * kv_heads * PAGE * head_dim
    reserved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    return torch.frombuffer(reserved, dtype=torch.float16, offset=before).view(shape)
