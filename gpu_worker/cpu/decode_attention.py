"""Attention of single queries over paged KV, read in place and once for all queries of a KV head.

A work item is one query token and one KV head. Pages are streamed in order with an online softmax in float32 (Milakov
and Gimelshein); nothing is gathered or copied, so the speed is that of memory.
"""

# The functions below are compiled by numba, which infers their types.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_worker.cpu.dialect import as_double, bf16_at, exp, f32_at, i32_at, load, store, take

__all__ = ["decode_bf16", "decode_f32"]

_FAST = {"fastmath": True, "error_model": "numpy"}
_PAGE = 16
_NONE = np.float32(-1e30)


@njit(inline="never", **_FAST)
def _page(dim, group, length, kv, k, v, query, total, scores, state):
    """Attend to one page. `state[2 g]` is the maximum so far, `state[2 g + 1]` the sum of exponentials."""
    for g in range(group):
        best = _NONE
        for t in range(length):
            dot = np.float32(0.0)
            for d in range(dim):
                dot += query[g * dim + d] * load(kv, k + t * dim + d)
            scores[t] = dot
            best = max(best, dot)
        peak = state[2 * g]
        if best > peak:
            shrink = exp(peak - best)
            peak = best
            state[2 * g] = best
            state[2 * g + 1] *= shrink
            for d in range(dim):
                total[g * dim + d] *= shrink
        mass = np.float32(0.0)
        for t in range(length):
            e = exp(scores[t] - peak)
            scores[t] = e
            mass += e
        state[2 * g + 1] += mass
        for t in range(length, _PAGE):
            scores[t] = np.float32(0.0)
        # Four tokens at a time: the running total is loaded and stored once for them.
        t = 0
        while t + 4 <= length:
            p0, p1, p2, p3 = scores[t], scores[t + 1], scores[t + 2], scores[t + 3]
            at = v + t * dim
            for d in range(dim):
                total[g * dim + d] += (
                    p0 * load(kv, at + d)
                    + p1 * load(kv, at + dim + d)
                    + p2 * load(kv, at + 2 * dim + d)
                    + p3 * load(kv, at + 3 * dim + d)
                )
            t += 4
        while t < length:
            p0 = scores[t]
            for d in range(dim):
                total[g * dim + d] += p0 * load(kv, v + t * dim + d)
            t += 1


@njit(**_FAST)
def _decode(p, dim, group, q, pool, out):
    items, kv_heads, q_width = p[6], p[7], p[8]
    stride_block, layer, scale = p[9], p[10], np.float32(as_double(p[11]))
    tables, width = i32_at(p[12]), p[13]
    table_of, context_of, source_of, target_of = i32_at(p[14]), i32_at(p[15]), i32_at(p[16]), i32_at(p[17])
    query, total = np.empty(group * dim, np.float32), np.empty(group * dim, np.float32)
    scores, state = np.empty(_PAGE, np.float32), np.empty(2 * group, np.float32)
    while True:
        item = take(p)
        if item >= items:
            return
        row, head = item // kv_heads, item % kv_heads
        source = source_of[row] * q_width + head * group * dim
        for i in range(group * dim):
            query[i] = load(q, source + i) * scale
            total[i] = np.float32(0.0)
        for g in range(group):
            state[2 * g] = _NONE
            state[2 * g + 1] = np.float32(0.0)
        context, table = np.int64(context_of[row]), table_of[row] * width
        for page in range((context + _PAGE - 1) // _PAGE):
            k = np.int64(tables[table + page]) * stride_block + layer + head * _PAGE * dim
            length = min(_PAGE, context - page * _PAGE)
            _page(dim, group, length, pool, k, k + kv_heads * _PAGE * dim, query, total, scores, state)
        target = (target_of[row] * kv_heads + head) * group * dim
        for g in range(group):
            inverse = np.float32(1.0) / state[2 * g + 1]
            for d in range(dim):
                store(out, target + g * dim + d, total[g * dim + d] * inverse)


@njit(**_FAST)
def _dispatch(p, q, pool, out):
    """The common head sizes as constants, so that the inner loops unroll."""
    dim, group = p[4], p[5]
    if dim == 128:
        _decode(p, 128, group, q, pool, out)
    elif dim == 64:
        _decode(p, 64, group, q, pool, out)
    else:
        _decode(p, dim, group, q, pool, out)


def decode_f32(p):
    _dispatch(p, f32_at(p[1]), f32_at(p[2]), f32_at(p[3]))


def decode_bf16(p):
    _dispatch(p, bf16_at(p[1]), bf16_at(p[2]), bf16_at(p[3]))
