"""QKV split, optional per-head RMSNorm of Q and K (Qwen3), rotary embedding and KV write, in one pass over QKV.

Apart they would be up to five launches, each reading or writing the same few kilobytes a token again.
"""
# Triton's decorators are untyped, and pointers have no Python type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpu_worker.kernels.errors import KernelArgumentError
from gpu_worker.kernels.kv_write import check_pool

__all__ = ["rope_and_write_kv"]


@triton.jit
def _rotate(low, high, cos, sin, norm, half, used, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Normalise heads given as their two halves (if NORM) and rotate them; fp32 out, rounded once by the caller."""
    dtype = low.dtype
    low = low.to(tl.float32)
    high = high.to(tl.float32)
    if NORM:
        square = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        inverse = tl.rsqrt(square / HEAD_DIM + eps)[:, None]
        weight_low = tl.load(norm + half, mask=used, other=0.0).to(tl.float32)
        weight_high = tl.load(norm + HEAD_DIM // 2 + half, mask=used, other=0.0).to(tl.float32)
        # Rounded to the dtype before and after the weight, as transformers does.
        low = ((low * inverse).to(dtype).to(tl.float32) * weight_low).to(dtype).to(tl.float32)
        high = ((high * inverse).to(dtype).to(tl.float32) * weight_high).to(dtype).to(tl.float32)
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _rope_kernel(
    q_out,
    qkv,
    cos_sin,
    positions,
    kv,
    slot_mapping,
    q_norm,
    k_norm,
    eps,
    stride_qkv,
    stride_cos_sin,
    stride_block,
    stride_kv,
    stride_head,
    stride_slot,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    NORM: tl.constexpr,
):
    """Grid: tokens, KV_HEADS. A program takes the query heads of one group and their key and value head."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    half = tl.arange(0, HALF_PADDED)[None, :]
    inside = half < HALF
    position = tl.load(positions + token).to(tl.int64)
    angle = cos_sin + position * stride_cos_sin + half
    cos = tl.load(angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(angle + HALF, mask=inside, other=0.0).to(tl.float32)

    member = tl.arange(0, GROUP_PADDED)[:, None]
    used = (member < GROUP) & inside
    offset = (kv_head * GROUP + member) * HEAD_DIM + half
    source = qkv + token * stride_qkv + offset
    low = tl.load(source, mask=used, other=0.0)
    high = tl.load(source + HALF, mask=used, other=0.0)
    low, high = _rotate(low, high, cos, sin, q_norm, half, inside, eps, HEAD_DIM, NORM)
    target = q_out + token * (KV_HEADS * GROUP * HEAD_DIM) + offset
    tl.store(target, low.to(q_out.dtype.element_ty), mask=used)
    tl.store(target + HALF, high.to(q_out.dtype.element_ty), mask=used)

    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    source = qkv + token * stride_qkv + (KV_HEADS * GROUP + kv_head) * HEAD_DIM + half
    target = kv + (slot // PAGE) * stride_block + (slot % PAGE) * stride_slot + kv_head * stride_head + half
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + HALF, mask=inside, other=0.0)
    low, high = _rotate(low, high, cos, sin, k_norm, half, inside, eps, HEAD_DIM, NORM)
    tl.store(target, low.to(kv.dtype.element_ty), mask=inside)
    tl.store(target + HALF, high.to(kv.dtype.element_ty), mask=inside)
    source += KV_HEADS * HEAD_DIM
    target += stride_kv
    tl.store(target, tl.load(source, mask=inside), mask=inside)
    tl.store(target + HALF, tl.load(source + HALF, mask=inside), mask=inside)


def rope_and_write_kv(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_pool: torch.Tensor,
    layer: int,
    slot_mapping: torch.Tensor,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Rotate the queries and keys of a fused projection, write keys and values into the pool, return the queries.

    Args:
        qkv: `[tokens, (num_heads + 2 x kv_heads) x head_dim]`: all query heads, then keys, then values; last stride 1.
        cos_sin: `[positions, head_dim]`: cosines of the head_dim / 2 angles, then sines; best in fp32. Dimension i is
            rotated against i + head_dim / 2 (the layout of Hugging Face checkpoints).
        positions: int32 or int64 `[tokens]`, each below the length of cos_sin.
        kv_pool, layer, slot_mapping: as in `write_kv`; a token with a negative slot is rotated but not written.
        num_heads: query heads.
        q_norm, k_norm: `[head_dim]`, weights of an RMSNorm over each head before the rotation (Qwen3); both or neither.
        eps: of that RMSNorm.

    Returns: `[tokens, num_heads, head_dim]`, contiguous. The rotation is computed in fp32 and rounded once.

    Raises: KernelArgumentError for shapes, dtypes and strides that do not fit together.
    """
    tokens, width = qkv.shape
    kv_heads, page, head_dim = kv_pool.shape[3:]
    check_pool(kv_pool, slot_mapping, kv_heads=kv_heads, head_dim=head_dim, tokens=tokens, dtype=qkv.dtype)
    if width != (num_heads + 2 * kv_heads) * head_dim or num_heads % kv_heads or qkv.stride(1) != 1:
        raise KernelArgumentError(
            f"qkv {list(qkv.shape)} must be [tokens, ({num_heads} + 2 x {kv_heads}) x {head_dim}], contiguous rows, "
            f"and {num_heads} heads a multiple of {kv_heads}"
        )
    if cos_sin.shape[1] != head_dim or head_dim % 2 or cos_sin.stride(1) != 1 or positions.shape != (tokens,):
        raise KernelArgumentError(
            f"cos_sin {list(cos_sin.shape)} must be [positions, {head_dim}], an even number, and positions "
            f"{list(positions.shape)} [{tokens}]"
        )
    if (q_norm is None) != (k_norm is None):
        raise KernelArgumentError("q_norm and k_norm come together: give both or neither")
    q = torch.empty((tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if tokens == 0:
        return q
    kv = kv_pool[:, layer]
    group = num_heads // kv_heads
    _rope_kernel[(tokens, kv_heads)](
        q, qkv, cos_sin, positions, kv, slot_mapping,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, eps,
        qkv.stride(0), cos_sin.stride(0), kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3),
        KV_HEADS=kv_heads, GROUP=group, GROUP_PADDED=triton.next_power_of_2(group), HEAD_DIM=head_dim,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2), PAGE=page, NORM=q_norm is not None,
        num_warps=1 if group <= 4 else 2, enable_fp_fusion=True,
    )  # fmt: skip
    return q
