"""SiLU of the gate times the up projection, in one pass over their fused output."""
# Triton's decorators are untyped, and pointers have no Python type.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpu_worker.kernels.errors import KernelArgumentError

__all__ = ["silu_mul"]

BLOCK = 1024


@triton.jit
def _silu_mul_kernel(out, gate_up, stride_gate_up, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Grid: tokens, blocks of the width."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = column < WIDTH
    source = gate_up + token * stride_gate_up + column
    gate = tl.load(source, mask=used, other=0.0)
    up = tl.load(source + WIDTH, mask=used, other=0.0).to(tl.float32)
    dtype = gate.dtype
    gate = gate.to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)  # rounded between, as transformers does
    tl.store(out + token * WIDTH + column, (silu * up).to(dtype), mask=used)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) x up.

    Args:
        gate_up: `[tokens, 2 x width]`, the gate first, last stride 1; fp32, bf16 or fp16.

    Returns: `[tokens, width]`, contiguous, in the dtype of gate_up. SiLU is computed in fp32 and rounded before the
    product.

    Raises: KernelArgumentError for an odd last dimension or one that is not contiguous.
    """
    tokens, both = gate_up.shape
    if both % 2 or gate_up.stride(1) != 1:
        raise KernelArgumentError(f"gate_up {list(gate_up.shape)} must be [tokens, 2 x width] with contiguous rows")
    out = torch.empty((tokens, both // 2), dtype=gate_up.dtype, device=gate_up.device)
    if tokens == 0 or both == 0:
        return out
    _silu_mul_kernel[(tokens, triton.cdiv(both // 2, BLOCK))](
        out, gate_up, gate_up.stride(0), WIDTH=both // 2, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True
    )
    return out
