"""Kernels over packed tokens: residual + RMSNorm, QKV norm + RoPE + KV write, SiLU x up."""

# The functions below are compiled by numba, which infers their types.
# mypy: ignore-errors

from __future__ import annotations

import numpy as np
from numba import njit

from gpu_worker.cpu.dialect import as_double, bf16_at, exp, f32_at, i32_at, load, store, take

__all__ = [
    "rms_norm_bf16",
    "rms_norm_f32",
    "rope_bf16",
    "rope_f32",
    "silu_mul_bf16",
    "silu_mul_f32",
]

_FAST = {"fastmath": True, "error_model": "numpy"}
_PAGE = 16


@njit(**_FAST)
def _rms_norm(p, x, residual, weight, y):
    """tokens, hidden, eps, tokens a turn, whether there is a residual to add (else x is copied to it)."""
    tokens, hidden, eps, turn, add = p[5], p[6], np.float32(as_double(p[7])), p[8], p[9]
    while True:
        begin = take(p) * turn
        if begin >= tokens:
            return
        for token in range(begin, min(tokens, begin + turn)):
            at = token * hidden
            if add:
                for i in range(hidden):
                    store(residual, at + i, load(x, at + i) + load(residual, at + i))
            else:
                for i in range(hidden):
                    store(residual, at + i, load(x, at + i))
            squares = np.float32(0.0)
            for i in range(hidden):
                value = load(residual, at + i)
                squares += value * value
            scale = np.float32(1.0) / np.sqrt(squares / np.float32(hidden) + eps)
            for i in range(hidden):
                store(y, at + i, load(residual, at + i) * scale * load(weight, i))


@njit(**_FAST)
def _norm_head(x, at, dim, weight, eps):
    squares = np.float32(0.0)
    for i in range(dim):
        value = load(x, at + i)
        squares += value * value
    scale = np.float32(1.0) / np.sqrt(squares / np.float32(dim) + eps)
    for i in range(dim):
        store(x, at + i, load(x, at + i) * scale * load(weight, i))


@njit(**_FAST)
def _rotate_head(x, at, half, angles, angle):
    for i in range(half):
        a, b = load(x, at + i), load(x, at + half + i)
        cos, sin = angles[angle + i], angles[angle + half + i]
        store(x, at + i, a * cos - b * sin)
        store(x, at + half + i, b * cos + a * sin)


@njit(**_FAST)
def _rope_and_write(p, qkv, pool, q_norm, k_norm):
    """In place on qkv; k and v also go to the pool."""
    angles, positions, slots = f32_at(p[5]), i32_at(p[6]), i32_at(p[7])
    tokens, heads, kv_heads, dim = p[8], p[9], p[10], p[11]
    stride_block, layer, normed, eps, turn = p[12], p[13], p[14], np.float32(as_double(p[15])), p[16]
    width, page = (heads + 2 * kv_heads) * dim, _PAGE * dim
    while True:
        begin = take(p) * turn
        if begin >= tokens:
            return
        for token in range(begin, min(tokens, begin + turn)):
            row, angle, slot = token * width, np.int64(positions[token]) * dim, np.int64(slots[token])
            for head in range(heads + kv_heads):
                at = row + head * dim
                if normed:
                    if head < heads:
                        _norm_head(qkv, at, dim, q_norm, eps)
                    else:
                        _norm_head(qkv, at, dim, k_norm, eps)
                _rotate_head(qkv, at, dim // 2, angles, angle)
            target = (slot // _PAGE) * stride_block + layer + (slot % _PAGE) * dim
            source = row + heads * dim
            for _ in range(2 * kv_heads):
                for i in range(dim):
                    pool[target + i] = qkv[source + i]
                source += dim
                target += page


@njit(**_FAST)
def _silu_mul(p, gate_up, out):
    tokens, width, turn = p[3], p[4], p[5]
    while True:
        begin = take(p) * turn
        if begin >= tokens:
            return
        for token in range(begin, min(tokens, begin + turn)):
            gate, up, at = 2 * token * width, 2 * token * width + width, token * width
            for i in range(width):
                g = load(gate_up, gate + i)
                store(out, at + i, g / (np.float32(1.0) + exp(-g)) * load(gate_up, up + i))


def rms_norm_f32(p):
    _rms_norm(p, f32_at(p[1]), f32_at(p[2]), f32_at(p[3]), f32_at(p[4]))


def rms_norm_bf16(p):
    _rms_norm(p, bf16_at(p[1]), bf16_at(p[2]), bf16_at(p[3]), bf16_at(p[4]))


def rope_f32(p):
    _rope_and_write(p, f32_at(p[1]), f32_at(p[2]), f32_at(p[3]), f32_at(p[4]))


def rope_bf16(p):
    _rope_and_write(p, bf16_at(p[1]), bf16_at(p[2]), bf16_at(p[3]), bf16_at(p[4]))


def silu_mul_f32(p):
    _silu_mul(p, f32_at(p[1]), f32_at(p[2]))


def silu_mul_bf16(p):
    _silu_mul(p, bf16_at(p[1]), bf16_at(p[2]))
