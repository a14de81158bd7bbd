"""The CUDA backend: `gpu_worker.kernels`. On CPU tensors they run in Triton's interpreter, for tests."""

from __future__ import annotations

import torch

from gpu_worker import kernels
from gpu_worker.batch import Batch
from gpu_worker.config import ModelConfig

__all__ = ["TritonBackend"]


class TritonBackend:
    """See `Backend`. `pool` is the KV pool, `rope` the float32 table of `rope_table`."""

    def __init__(self, config: ModelConfig, pool: torch.Tensor, rope: torch.Tensor) -> None:
        self._config = config
        self._pool = pool
        self._rope = rope
        self._scale = config.head_dim**-0.5
        self._slots = self._last = torch.empty(0)

    def begin(self, batch: Batch) -> None:
        self._slots = batch.slot_mapping.long()
        self._last = batch.last.long()

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.rms_norm(x, weight, eps, residual)

    def rope_and_write_kv(
        self, qkv: torch.Tensor, layer: int, batch: Batch, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None
    ) -> torch.Tensor:
        return kernels.rope_and_write_kv(
            qkv,
            self._rope,
            batch.positions,
            self._pool,
            layer,
            self._slots,
            num_heads=self._config.heads,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=self._config.norm_eps,
        )

    def attention(self, q: torch.Tensor, layer: int, batch: Batch, *, last: bool = False) -> torch.Tensor:
        segments = batch.sampling if last else batch.all
        if last:
            q = q.index_select(0, self._last)
        out = kernels.paged_attention(
            q,
            self._pool,
            layer,
            segments.block_tables,
            segments.query_start,
            segments.context_len,
            scale=self._scale,
            max_query_len=segments.max_query_len,
            max_context_len=segments.max_context_len,
        )
        return out.flatten(1)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        return kernels.silu_mul(gate_up)
