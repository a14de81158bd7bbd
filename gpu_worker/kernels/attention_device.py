"""The attention kernels themselves: what runs on the device. `attention.py` launches them and states the contract.

One source, two regimes. A program owns a tile of BLOCK_M rows, each a (query, head) pair of one request and one KV
head: row m is query m // GROUP, head m % GROUP, so that a KV page is read once for the whole group. In the decode
regime a program owns all queries of a short row and one split of its context; in the prefill regime it owns
BLOCK_M // GROUP queries and the whole context up to them.

The loop over context runs in two parts: tiles that every query of the program sees in full, with no mask at all, and
the boundary, masked by causality and length. Masked loads return zero, never what lies in the pool: an unused slot may
hold NaN, and 0 x NaN is NaN.

Softmax is the online form (Milakov and Gimelshein 2018; FlashAttention 2, Dao 2023) in base 2; the scale is applied in
the same fused multiply-add as the shift of the exponent, which costs what folding it into Q costs and does not round Q
a second time. Partials of a split context are normalised and merged by their log-sum-exp (FlashDecoding).
"""
# Triton's decorators are untyped, and pointers have no Python type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attention_kernel", "merge_kernel"]


@triton.jit
def _page_offsets(table, tile, last_page, stride_block, stride_slot, PAGE: tl.constexpr, TILE: tl.constexpr):
    """Where in the pool the TILE tokens of a tile lie, in elements, int64 `[TILE]`; past the last page, in the last.

    One scalar look-up a page, and the 64-bit product on the scalar: no division and no 64-bit product a lane.
    """
    PAGES: tl.constexpr = TILE // PAGE
    lane = tl.arange(0, TILE)
    offset = (lane % PAGE).to(tl.int64) * stride_slot
    for page in tl.static_range(PAGES):
        block = tl.load(table + tl.minimum(tile * PAGES + page, last_page))
        offset += tl.where(lane // PAGE == page, block.to(tl.int64) * stride_block, 0)
    # True where the head dimension is a multiple of 16. The compiler does not see it through the choice of a page, and
    # without it loads KV 2 bytes at a time, and not ahead.
    return tl.multiple_of(offset, 16)


@triton.jit
def _attend(
    q,
    acc,
    row_max,
    row_sum,
    kv,
    offset,
    position,
    row_position,
    end,
    log2_scale,
    stride_kv,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    MASKED: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take the tokens at `offset` in the pool, at `position` in the context, into the running softmax."""
    dim = tl.arange(0, DIM)
    pointers = kv + offset[:, None] + dim[None, :]
    if MASKED:
        loaded = (position < end)[:, None] & (dim < HEAD_DIM)[None, :]
        k = tl.load(pointers, mask=loaded, other=0.0)
        v = tl.load(pointers + stride_kv, mask=loaded, other=0.0)
    elif HEAD_DIM != DIM:
        inside = (dim < HEAD_DIM)[None, :]
        k = tl.load(pointers, mask=inside, other=0.0)
        v = tl.load(pointers + stride_kv, mask=inside, other=0.0)
    else:
        k = tl.load(pointers)
        v = tl.load(pointers + stride_kv)
    if DOT_IN_FP32:
        k = k.to(tl.float32)
        v = v.to(tl.float32)

    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(position[None, :] <= row_position[:, None], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1) * log2_scale)
    if MASKED:  # noqa: SIM108  a row that has seen nothing yet keeps -inf, and must not become -inf - -inf
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    else:
        shift = new_max
    weights = tl.exp2(scores * log2_scale - shift[:, None])
    decay = tl.exp2(row_max - shift)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def _row_of_block(query_start, block, rows, BLOCK_Q: tl.constexpr):
    """The row whose query blocks include number `block`, where row i begins at block query_start[i] // BLOCK_Q + i.

    That numbering needs at most one block a row more than necessary, and the number of blocks,
    tokens // BLOCK_Q + rows, is known without reading a length back to the host.
    """
    low = 0
    high = rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // BLOCK_Q + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=["rows", "splits", "scratch_queries"])
def attention_kernel(
    out,
    partial_out,
    partial_lse,
    q,
    kv,
    block_tables,
    query_start,
    context_len,
    rows,
    splits,
    scratch_queries,
    log2_scale,
    stride_table,
    stride_q_token,
    stride_q_head,
    stride_out_token,
    stride_out_head,
    stride_block,
    stride_kv,
    stride_head,
    stride_slot,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    DECODE: tl.constexpr,
    DECODE_QUERIES: tl.constexpr,
    SPLIT: tl.constexpr,
    MIN_SPLIT_TILES: tl.constexpr,
    DOT_IN_FP32: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (rows or query blocks) x KV_HEADS on axis 0, splits on axis 1. Rows of the other regime return at once."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    kv_head = tl.program_id(0) % KV_HEADS
    if DECODE:
        row = tl.program_id(0) // KV_HEADS
        first_query = 0
    else:
        # Last block first: under a causal mask the late blocks are the long ones, and they should not start last.
        block = (tl.num_programs(0) - 1 - tl.program_id(0)) // KV_HEADS
        row = _row_of_block(query_start, block, rows, BLOCK_Q)
        first_query = (block - (tl.load(query_start + row) // BLOCK_Q + row)) * BLOCK_Q
    first_token = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - first_token
    if DECODE:
        if (query_len == 0) | (query_len > DECODE_QUERIES):
            return
    else:
        if (first_query >= query_len) | (query_len <= DECODE_QUERIES):
            return

    context = tl.load(context_len + row)
    first_position = context - query_len + first_query
    end = tl.minimum(first_position + BLOCK_Q, context)
    tiles = tl.cdiv(end, TILE)
    begin_tile = 0
    end_tile = tiles
    split = tl.program_id(1)
    active = 1
    if SPLIT:
        tiles_a_split = tl.maximum(tl.cdiv(tiles, splits), MIN_SPLIT_TILES)
        active = tl.cdiv(tiles, tiles_a_split)
        begin_tile = split * tiles_a_split
        end_tile = tl.minimum(begin_tile + tiles_a_split, tiles)
        if (begin_tile >= end_tile) & (split > 0):
            return

    m = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, DIM)
    query = first_query + m // GROUP
    head = kv_head * GROUP + m % GROUP
    used = (m < BLOCK_Q * GROUP) & (query < query_len)
    stored = used[:, None] & (dim < HEAD_DIM)[None, :]
    token = (first_token + query).to(tl.int64)
    q_offset = token * stride_q_token + head * stride_q_head
    queries = tl.load(q + q_offset[:, None] + dim[None, :], mask=stored, other=0.0)
    if DOT_IN_FP32:
        queries = queries.to(tl.float32)

    kv += kv_head * stride_head
    block_table = block_tables + row.to(tl.int64) * stride_table
    row_position = first_position + m // GROUP
    acc = tl.zeros((BLOCK_M, DIM), tl.float32)
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    lane = tl.arange(0, TILE)
    last_page = (end - 1) // PAGE
    full_tiles = tl.minimum((first_position + 1) // TILE, end_tile)  # every query of the program sees these whole
    # Look-ups run one tile ahead and are carried over. If they were made in the iteration that needs them, the
    # pipeliner would divide its stages between them and the loads of KV.
    offset = _page_offsets(block_table, begin_tile, last_page, stride_block, stride_slot, PAGE, TILE)
    for tile in tl.range(begin_tile, full_tiles, num_stages=STAGES):
        following = _page_offsets(block_table, tile + 1, last_page, stride_block, stride_slot, PAGE, TILE)
        acc, row_max, row_sum = _attend(
            queries, acc, row_max, row_sum, kv, offset, tile * TILE + lane, row_position, end, log2_scale, stride_kv,
            HEAD_DIM, DIM, False, DOT_IN_FP32, PRECISION,
        )  # fmt: skip
        offset = following
    for tile in tl.range(tl.maximum(begin_tile, full_tiles), end_tile, num_stages=STAGES):
        following = _page_offsets(block_table, tile + 1, last_page, stride_block, stride_slot, PAGE, TILE)
        acc, row_max, row_sum = _attend(
            queries, acc, row_max, row_sum, kv, offset, tile * TILE + lane, row_position, end, log2_scale, stride_kv,
            HEAD_DIM, DIM, True, DOT_IN_FP32, PRECISION,
        )  # fmt: skip
        offset = following

    row_sum = tl.where(row_sum > 0.0, row_sum, 1.0)  # a row that saw nothing: zeros, and a weight of exp2(-inf)
    result = acc / row_sum[:, None]
    if SPLIT:  # noqa: SIM102  known when compiling, unlike the next
        if active > 1:
            slot = ((row.to(tl.int64) * scratch_queries + query) * (KV_HEADS * GROUP) + head) * splits + split
            tl.store(partial_out + slot[:, None] * HEAD_DIM + dim[None, :], result, mask=stored)
            tl.store(partial_lse + slot, row_max + tl.log2(row_sum), mask=used)
            return
    out_offset = token * stride_out_token + head * stride_out_head
    tl.store(out + out_offset[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["splits", "scratch_queries"])
def merge_kernel(
    out,
    partial_out,
    partial_lse,
    query_start,
    context_len,
    splits,
    scratch_queries,
    stride_out_token,
    stride_out_head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
    DECODE_QUERIES: tl.constexpr,
    MIN_SPLIT_TILES: tl.constexpr,
):
    """Grid: rows x scratch_queries, HEADS. Merges the splits of one (query, head); a row of one split is done already.

    SPLITS is `splits` rounded up to a power of two.
    """
    row = tl.program_id(0) // scratch_queries
    query = tl.program_id(0) % scratch_queries
    head = tl.program_id(1)
    first_token = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - first_token
    if (query >= query_len) | (query_len > DECODE_QUERIES):
        return
    tiles = tl.cdiv(tl.load(context_len + row), TILE)
    tiles_a_split = tl.maximum(tl.cdiv(tiles, splits), MIN_SPLIT_TILES)
    active = tl.cdiv(tiles, tiles_a_split)
    if active <= 1:
        return
    split = tl.arange(0, SPLITS)
    dim = tl.arange(0, DIM)
    slot = ((row.to(tl.int64) * scratch_queries + query) * HEADS + head) * splits + split
    lse = tl.load(partial_lse + slot, mask=split < active, other=float("-inf"))
    stored = (split < active)[:, None] & (dim < HEAD_DIM)[None, :]
    partial = tl.load(partial_out + slot[:, None] * HEAD_DIM + dim[None, :], mask=stored, other=0.0)
    weights = tl.exp2(lse - tl.max(lse, 0))
    merged = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    offset = (first_token + query).to(tl.int64) * stride_out_token + head * stride_out_head
    tl.store(out + offset + dim, merged.to(out.dtype.element_ty), mask=dim < HEAD_DIM)
