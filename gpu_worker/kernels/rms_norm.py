"""RMSNorm with the residual addition before it, in one pass."""
# Triton's decorators are untyped, and pointers have no Python type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpu_worker.kernels.errors import KernelArgumentError

__all__ = ["rms_norm"]

MAX_HIDDEN = 32768  # one program holds a row in registers


@triton.jit
def _rms_norm_kernel(
    y,
    sums,
    x,
    residual,
    weight,
    eps,
    stride_x,
    stride_residual,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    used = column < HIDDEN
    value = tl.load(x + token * stride_x + column, mask=used, other=0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + token * stride_residual + column, mask=used, other=0.0).to(tl.float32)
        rounded = value.to(dtype)
        tl.store(sums + token * HIDDEN + column, rounded, mask=used)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    scale = tl.load(weight + column, mask=used, other=0.0).to(tl.float32)
    normal = (value * inverse).to(dtype).to(tl.float32)
    tl.store(y + token * HIDDEN + column, (normal * scale).to(dtype), mask=used)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + residual`, and its RMSNorm.

    The order of roundings is that of transformers' `LlamaRMSNorm`: the sum is rounded to the dtype, the mean of squares
    is taken in fp32, the normalised value is rounded to the dtype, then multiplied by the weight and rounded again.

    Args:
        x: `[tokens, hidden]`, last stride 1; fp32, bf16 or fp16.
        weight: `[hidden]`.
        eps: added to the mean of squares.
        residual: `[tokens, hidden]`, dtype of x, last stride 1.

    Returns: (y, x + residual), both `[tokens, hidden]` in the dtype of x and new; without a residual, the second is x
    itself.

    Raises: KernelArgumentError for shapes and strides that do not fit together, or hidden above 32,768.
    """
    tokens, hidden = x.shape
    if hidden > MAX_HIDDEN:
        raise KernelArgumentError(f"hidden {hidden} is above {MAX_HIDDEN}, the most that one program takes")
    if weight.shape != (hidden,) or x.stride(1) != 1:
        raise KernelArgumentError(
            f"weight {list(weight.shape)} must be [{hidden}], and the last dimension of x contiguous"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.stride(1) != 1):
        raise KernelArgumentError(
            f"residual {list(residual.shape)} {residual.dtype} must be like x {list(x.shape)} {x.dtype}, row by row"
        )
    y = torch.empty((tokens, hidden), dtype=x.dtype, device=x.device)
    sums = x if residual is None else torch.empty_like(y)
    if tokens == 0:
        return y, sums
    block = triton.next_power_of_2(hidden)
    added = x if residual is None else residual
    _rms_norm_kernel[(tokens,)](
        y, sums, x, added, weight, eps, x.stride(0), added.stride(0),
        HIDDEN=hidden, BLOCK=block, RESIDUAL=residual is not None,
        num_warps=min(16, max(1, block // 512)), enable_fp_fusion=True,
    )  # fmt: skip
    return y, sums
