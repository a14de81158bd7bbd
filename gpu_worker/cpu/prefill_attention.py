"""What surrounds the matrix products of prefill attention: packing queries, gathering pages, softmax, unpacking.

oneDNN multiplies bfloat16 at hundreds of GFLOP/s; torch's flash kernel for CPUs reaches a tenth of that. So scores are
materialised for a block of queries at a time, small enough for the cache, and only as far as the block can see.
"""

# The functions below are compiled by numba, which infers their types.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_worker.cpu.dialect import as_double, bf16_at, exp, f32_at, i32_at, load, store, take

__all__ = [
    "gather_bf16",
    "gather_f32",
    "pack_bf16",
    "pack_f32",
    "softmax_bf16",
    "softmax_f32",
    "unpack_bf16",
    "unpack_f32",
]

_FAST = {"fastmath": True, "error_model": "numpy"}
_PAGE = 16


@njit(**_FAST)
def _gather(p, pool, out):
    """The first `tokens` of one row's pages of a layer, zeros after: out[2, kv_heads, padded, dim]."""
    table, tokens, padded, kv_heads, dim = i32_at(p[3]), p[4], p[5], p[6], p[7]
    stride_block, layer = p[8], p[9]
    page = _PAGE * dim
    while True:
        item = take(p)
        begin = item * _PAGE
        if begin >= padded:
            return
        copied = min(_PAGE, max(0, tokens - begin)) * dim
        source = layer
        if copied:
            source += np.int64(table[item]) * stride_block
        whole = min(_PAGE, padded - begin) * dim
        for head in range(2 * kv_heads):
            target = (head * padded + begin) * dim
            for i in range(copied):
                out[target + i] = pool[source + i]
            for i in range(copied, whole):
                store(out, target + i, np.float32(0.0))
            source += page


@njit(**_FAST)
def _pack(p, q, out):
    """Queries of heads `first` to `first + heads` (of KV) as out[heads, padded x group, dim]; zeros past `tokens`."""
    tokens, padded, group_width, heads, first, q_width = p[3], p[4], p[5], p[6], p[7], p[8]
    while True:
        token = take(p)
        if token >= padded:
            return
        for head in range(heads):
            target = (head * padded + token) * group_width
            source = token * q_width + (first + head) * group_width
            if token < tokens:
                for i in range(group_width):
                    out[target + i] = q[source + i]
            else:
                for i in range(group_width):
                    store(out, target + i, np.float32(0.0))


@njit(**_FAST)
def _softmax(p, scores):
    """scores[rows, keys] to exp(scale (score - maximum)), 0 for keys after the query; 1 / sum goes to inverse[rows].

    Row i is query (i % rows_a_head) // group, which is at position `position` of the context.
    """
    inverse = f32_at(p[2])
    rows, keys, rows_a_head, group, position = p[3], p[4], p[5], p[6], p[7]
    scale, turn = np.float32(as_double(p[8])), p[9]
    while True:
        begin = take(p) * turn
        if begin >= rows:
            return
        for row in range(begin, min(rows, begin + turn)):
            at = row * keys
            seen = min(keys, position + (row % rows_a_head) // group + 1)
            best = np.float32(-3e38)
            for i in range(seen):
                best = max(best, load(scores, at + i))
            total = np.float32(0.0)
            for i in range(seen):
                e = exp((load(scores, at + i) - best) * scale)
                total += e
                store(scores, at + i, e)
            for i in range(seen, keys):
                store(scores, at + i, np.float32(0.0))
            inverse[row] = np.float32(1.0) / total


@njit(**_FAST)
def _unpack(p, values, out):
    """values[heads, padded x group, dim] x inverse to out[tokens, all heads x dim]."""
    inverse = f32_at(p[3])
    tokens, padded, group, dim, heads, first, out_width = p[4], p[5], p[6], p[7], p[8], p[9], p[10]
    while True:
        token = take(p)
        if token >= tokens:
            return
        for head in range(heads):
            for g in range(group):
                row = (head * padded + token) * group + g
                scale, source = inverse[row], row * dim
                target = token * out_width + ((first + head) * group + g) * dim
                for i in range(dim):
                    store(out, target + i, load(values, source + i) * scale)


def gather_f32(p):
    _gather(p, f32_at(p[1]), f32_at(p[2]))


def gather_bf16(p):
    _gather(p, bf16_at(p[1]), bf16_at(p[2]))


def pack_f32(p):
    _pack(p, f32_at(p[1]), f32_at(p[2]))


def pack_bf16(p):
    _pack(p, bf16_at(p[1]), bf16_at(p[2]))


def softmax_f32(p):
    _softmax(p, f32_at(p[1]))


def softmax_bf16(p):
    _softmax(p, bf16_at(p[1]))


def unpack_f32(p):
    _unpack(p, f32_at(p[1]), f32_at(p[2]))


def unpack_bf16(p):
    _unpack(p, bf16_at(p[1]), bf16_at(p[2]))
