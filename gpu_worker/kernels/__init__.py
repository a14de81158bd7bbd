"""Triton kernels of the engine, as plain functions on tensors.

They allocate at most their outputs, never wait for the device, and launch grids that depend on padded sizes alone, so
that CUDA graphs capture them. On CUDA they are compiled; on CPU tensors they run in Triton's interpreter if
TRITON_INTERPRET=1 was set before triton was first imported, which is for tests: it is far too slow to serve.
"""

from __future__ import annotations

from gpu_worker.kernels.activation import silu_mul
from gpu_worker.kernels.attention import paged_attention
from gpu_worker.kernels.errors import KernelArgumentError
from gpu_worker.kernels.kv_write import write_kv
from gpu_worker.kernels.rms_norm import rms_norm
from gpu_worker.kernels.rope import rope_and_write_kv

__all__ = ["KernelArgumentError", "paged_attention", "rms_norm", "rope_and_write_kv", "silu_mul", "write_kv"]
