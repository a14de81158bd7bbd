"""Attention over a paged KV pool for a packed, ragged batch: prefill, decode and both at once.

This is the launch side; `attention_device.py` holds the kernels. Everything the host decides here (grid, number of
splits) follows from padded sizes it already knows. Lengths are read on the device, so that a captured CUDA graph
replays for any batch of its size, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import replace
from math import log2

import torch
from triton import JITFunction

from gpu_worker.kernels.attention_device import attention_kernel, merge_kernel
from gpu_worker.kernels.errors import KernelArgumentError
from gpu_worker.kernels.tiles import Regime, Tile, processors_of, tile_for

__all__ = ["choose_splits", "decode_queries", "paged_attention"]

LOG2_E = 1.4426950408889634
MIN_TILE_ROWS = 16  # the least rows a tensor core takes
MIN_SPLIT_TOKENS = 256  # below this a split costs more in merging than it gains in parallel loads
MAX_SPLITS = 64
PROGRAMS_A_PROCESSOR = 4  # decode programs that run side by side on one processor


def paged_attention(
    q: torch.Tensor,
    kv_pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    *,
    scale: float,
    max_query_len: int,
    max_context_len: int,
    num_splits: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of every query over the context of its row, as pages of `kv_pool`.

    Args:
        q: `[tokens, heads, head_dim]`, the queries of all rows, packed; fp32, bf16 or fp16; last stride 1.
        kv_pool: `[blocks, layers, 2, kv_heads, block_size, head_dim]`, dtype of q; keys at 0, values at 1 of axis 2. It
            may hold more than 2^31 elements. The keys and values of this step's tokens are in it already.
        layer: which layer of the pool.
        block_tables: int32 `[rows, max_blocks]`; entries past a row's last used block are not read.
        query_start: int32 `[rows + 1]`; row i has queries query_start[i] to query_start[i + 1] - 1. A row may be empty.
        context_len: int32 `[rows]`; tokens of context, this step's included: query j of row i sits at position
            context_len[i] - query_len[i] + j, and sees that position and all before it.
        scale: what scores are multiplied by; positive, in general head_dim ** -0.5.
        max_query_len: no row has more queries; from padded sizes, equal in capture and replay.
        max_context_len: no row has more context; likewise. It guides the number of splits alone, so a bound is enough.
        num_splits: into how many parts a decode row's context is split at most; chosen from the sizes if None.
        out: `[tokens, heads, head_dim]`, written and returned; allocated if None.

    Returns: `[tokens, heads, head_dim]` in the dtype of q. Tokens past query_start[rows] are not written. Slots of a
    block past the context are never used, whatever they hold.

    Raises: KernelArgumentError for shapes, dtypes and strides that do not fit together.
    """
    _check(q, kv_pool, block_tables, query_start, context_len, scale)
    out = torch.empty_like(q, memory_format=torch.contiguous_format) if out is None else out
    tokens, heads, head_dim = q.shape
    rows, kv_heads, page = context_len.shape[0], kv_pool.shape[3], kv_pool.shape[4]
    if tokens == 0 or rows == 0:
        return out
    group = heads // kv_heads
    short = decode_queries(group)
    decodes = max_query_len <= short or rows > 1  # a batch of one long row has nothing to decode
    prefills = max_query_len > short
    # The layer's offset goes into the pointer: no kernel is compiled for a layer.
    inputs = (q, kv_pool[:, layer], block_tables, query_start, context_len)

    if decodes:
        tile = _fitted(tile_for(q.device, head_dim=head_dim, regime=Regime.DECODE, dtype=q.dtype), group, page)
        splits = num_splits or choose_splits(rows * kv_heads, max_context_len, processors_of(q.device))
        least = 1 if num_splits else max(1, MIN_SPLIT_TOKENS // tile.tokens)
        queries = min(max_query_len, short)
        partial_out = partial_lse = out
        if splits > 1:
            slots = rows * queries * heads * splits
            partial_out = torch.empty(slots * head_dim, dtype=torch.float32, device=q.device)
            partial_lse = torch.empty(slots, dtype=torch.float32, device=q.device)
        _launch(
            (rows * kv_heads, splits), tile, out, partial_out, partial_lse, inputs,
            scale=scale, decode=True, short=short, splits=splits, min_split_tiles=least, scratch_queries=queries,
        )  # fmt: skip
        if splits > 1:
            merge_kernel[(rows * queries, heads)](
                out, partial_out, partial_lse, query_start, context_len, splits, queries, out.stride(0), out.stride(1),
                HEADS=heads, HEAD_DIM=head_dim, DIM=_padded(head_dim), TILE=tile.tokens, SPLITS=_power_of_two(splits),
                DECODE_QUERIES=short, MIN_SPLIT_TILES=least, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    if prefills:
        tile = _fitted(tile_for(q.device, head_dim=head_dim, regime=Regime.PREFILL, dtype=q.dtype), group, page)
        blocks = tokens // (tile.rows // group) + rows
        _launch(
            (blocks * kv_heads, 1), tile, out, out, out, inputs,
            scale=scale, decode=False, short=short if decodes else 0, splits=1, min_split_tiles=1, scratch_queries=1,
        )  # fmt: skip
    return out


def decode_queries(group: int) -> int:
    """The longest row, in queries, that the decode regime takes: what fits into its tile with `group` heads a query."""
    return max(1, MIN_TILE_ROWS // group)


def choose_splits(programs: int, max_context_len: int, processors: int) -> int:
    """Into how many parts to split each context so that `programs` (rows x KV heads) fill the device.

    One if they fill it already: then splitting only adds the merge. A power of two, so that few variants are compiled.
    A row with less context than the longest uses fewer of them; the kernel decides that from its length.
    """
    if programs >= 2 * processors:
        return 1
    wanted = _power_of_two(-(-PROGRAMS_A_PROCESSOR * processors // programs))
    useful = 1 << max(0, int(log2(max(1, max_context_len // MIN_SPLIT_TOKENS))))
    return min(wanted, useful, MAX_SPLITS)


def _launch(
    grid: tuple[int, int],
    tile: Tile,
    out: torch.Tensor,
    partial_out: torch.Tensor,
    partial_lse: torch.Tensor,
    inputs: tuple[torch.Tensor, ...],
    *,
    scale: float,
    decode: bool,
    short: int,
    splits: int,
    min_split_tiles: int,
    scratch_queries: int,
) -> None:
    q, kv, block_tables, query_start, context_len = inputs
    kv_heads, page, head_dim = kv.shape[2:]
    attention_kernel[grid](
        out, partial_out, partial_lse, q, kv, block_tables, query_start, context_len,
        context_len.shape[0], splits, scratch_queries, scale * LOG2_E,
        block_tables.stride(0), q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3),
        KV_HEADS=kv_heads, GROUP=q.shape[1] // kv_heads, HEAD_DIM=head_dim, DIM=_padded(head_dim), PAGE=page,
        BLOCK_M=tile.rows, TILE=tile.tokens, STAGES=tile.stages, DECODE=decode, DECODE_QUERIES=short,
        SPLIT=splits > 1, MIN_SPLIT_TILES=min_split_tiles,
        # The interpreter keeps bf16 as raw 16-bit integers and would multiply those.
        DOT_IN_FP32=q.dtype == torch.bfloat16 and not isinstance(attention_kernel, JITFunction),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _fitted(tile: Tile, group: int, page: int) -> Tile:
    """The tile with room for a query's whole group of heads, and for a whole page."""
    return replace(tile, rows=max(tile.rows, _power_of_two(group)), tokens=max(tile.tokens, page))


def _check(
    q: torch.Tensor,
    kv_pool: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    scale: float,
) -> None:
    if q.dim() != 3 or kv_pool.dim() != 6 or kv_pool.shape[2] != 2 or q.shape[2] != kv_pool.shape[5]:
        raise KernelArgumentError(
            f"q {list(q.shape)} and kv_pool {list(kv_pool.shape)} must be [tokens, heads, head_dim] and "
            "[blocks, layers, 2, kv_heads, block_size, head_dim] with one head_dim"
        )
    if q.shape[2] % 16:
        raise KernelArgumentError(f"head_dim {q.shape[2]} must be a multiple of 16")
    if q.shape[1] % kv_pool.shape[3]:
        raise KernelArgumentError(f"{q.shape[1]} heads must be a multiple of {kv_pool.shape[3]} KV heads")
    if kv_pool.shape[4] < 16 or kv_pool.shape[4] & (kv_pool.shape[4] - 1):
        raise KernelArgumentError(f"block_size {kv_pool.shape[4]} must be a power of two of at least 16")
    if q.dtype != kv_pool.dtype:
        raise KernelArgumentError(f"q is {q.dtype} and kv_pool {kv_pool.dtype}: they must be equal")
    if q.stride(2) != 1 or kv_pool.stride(5) != 1 or any(stride % 16 for stride in kv_pool.stride()[:5]):
        raise KernelArgumentError(
            f"the last dimension of q {q.stride()} and of kv_pool {kv_pool.stride()} must be contiguous, "
            "and the other strides of kv_pool multiples of 16"
        )
    rows = context_len.shape[0]
    if query_start.shape[0] != rows + 1 or block_tables.shape[0] != rows:
        raise KernelArgumentError(
            f"context_len has {rows} rows, so query_start needs {rows + 1} entries (has {query_start.shape[0]}) "
            f"and block_tables {rows} rows (has {block_tables.shape[0]})"
        )
    for name, tensor in (("block_tables", block_tables), ("query_start", query_start), ("context_len", context_len)):
        if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
            raise KernelArgumentError(f"{name} must be contiguous int32, not {tensor.dtype} stride {tensor.stride()}")
    if not scale > 0:
        raise KernelArgumentError(f"scale {scale} must be positive")


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _padded(head_dim: int) -> int:
    return max(16, _power_of_two(head_dim))
