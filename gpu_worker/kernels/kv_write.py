"""Scatter of freshly computed keys and values into the paged pool.

Used where there is nothing to fuse with; a Llama layer uses `rope_and_write_kv`, which writes in the pass that rotates.
"""
# Triton's decorators are untyped, and pointers have no Python type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpu_worker.kernels.errors import KernelArgumentError

__all__ = ["check_pool", "write_kv"]


@triton.jit
def _write_kv_kernel(
    k,
    v,
    kv,
    slot_mapping,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_block,
    stride_kv,
    stride_head,
    stride_slot,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:
        return
    head = tl.arange(0, HEADS)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    used = (head < KV_HEADS) & (dim < HEAD_DIM)
    target = kv + (slot // PAGE) * stride_block + (slot % PAGE) * stride_slot + head * stride_head + dim
    tl.store(target, tl.load(k + token * stride_k_token + head * stride_k_head + dim, mask=used), mask=used)
    value = tl.load(v + token * stride_v_token + head * stride_v_head + dim, mask=used)
    tl.store(target + stride_kv, value, mask=used)


def write_kv(k: torch.Tensor, v: torch.Tensor, kv_pool: torch.Tensor, layer: int, slot_mapping: torch.Tensor) -> None:
    """Write the keys and values of each token into its slot of `kv_pool`, in place.

    Args:
        k, v: `[tokens, kv_heads, head_dim]`, dtype of the pool, last stride 1.
        kv_pool: `[blocks, layers, 2, kv_heads, block_size, head_dim]`; may hold more than 2^31 elements.
        layer: which layer of the pool.
        slot_mapping: int64 `[tokens]`, block x block_size + offset. A negative slot is skipped (padding). Two tokens
            with one slot are not ordered.

    Raises: KernelArgumentError for shapes, dtypes and strides that do not fit together.
    """
    tokens, kv_heads, head_dim = k.shape
    check_pool(kv_pool, slot_mapping, kv_heads=kv_heads, head_dim=head_dim, tokens=tokens, dtype=k.dtype)
    if v.shape != k.shape or v.dtype != k.dtype or k.stride(2) != 1 or v.stride(2) != 1:
        raise KernelArgumentError(
            f"k {list(k.shape)} {k.dtype} and v {list(v.shape)} {v.dtype} must be alike, with contiguous heads"
        )
    if tokens == 0:
        return
    kv = kv_pool[:, layer]
    _write_kv_kernel[(tokens,)](
        k, v, kv, slot_mapping, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        kv.stride(0), kv.stride(1), kv.stride(2), kv.stride(3),
        KV_HEADS=kv_heads, HEADS=triton.next_power_of_2(kv_heads), HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(head_dim), PAGE=kv_pool.shape[4], num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


def check_pool(
    kv_pool: torch.Tensor, slot_mapping: torch.Tensor, *, kv_heads: int, head_dim: int, tokens: int, dtype: torch.dtype
) -> None:
    """Refuse a pool or slot mapping that does not fit keys and values of this shape.

    Raises: KernelArgumentError.
    """
    if kv_pool.dim() != 6 or kv_pool.shape[2] != 2 or kv_pool.shape[3] != kv_heads or kv_pool.shape[5] != head_dim:
        raise KernelArgumentError(
            f"kv_pool {list(kv_pool.shape)} must be [blocks, layers, 2, {kv_heads}, block_size, {head_dim}]"
        )
    if kv_pool.dtype != dtype or kv_pool.stride(5) != 1:
        raise KernelArgumentError(f"kv_pool must be {dtype} (is {kv_pool.dtype}) with its last dimension contiguous")
    if slot_mapping.dtype != torch.int64 or slot_mapping.shape != (tokens,):
        raise KernelArgumentError(
            f"slot_mapping must be int64 [{tokens}], not {slot_mapping.dtype} {list(slot_mapping.shape)}"
        )
