"""The backend in plain torch: each row by itself, its context gathered, in float32. Slow; it tests the others."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention, silu

from gpu_worker.batch import Batch
from gpu_worker.config import ModelConfig
from policies.vocabulary import BLOCK_SIZE

__all__ = ["ReferenceBackend"]


class ReferenceBackend:
    """See `Backend`. `pool` is the KV pool, `rope` the table of `rope_table`."""

    def __init__(self, config: ModelConfig, pool: torch.Tensor, rope: torch.Tensor) -> None:
        self._config = config
        self._pool = pool
        self._rope = rope

    def begin(self, batch: Batch) -> None:
        pass

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x if residual is None else x + residual
        wide = total.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return wide.to(x.dtype) * weight, total

    def rope_and_write_kv(
        self, qkv: torch.Tensor, layer: int, batch: Batch, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None
    ) -> torch.Tensor:
        c = self._config
        heads = qkv.view(len(qkv), c.heads + 2 * c.kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.heads, c.kv_heads, c.kv_heads], dim=1)
        if q_norm is not None and k_norm is not None:
            q, k = self.rms_norm(q, q_norm, c.norm_eps)[0], self.rms_norm(k, k_norm, c.norm_eps)[0]
        angles = self._rope[batch.positions.long()]
        q, k = self._rotate(q, angles), self._rotate(k, angles)
        block = (batch.slot_mapping // BLOCK_SIZE).long()
        offset = (batch.slot_mapping % BLOCK_SIZE).long()
        self._pool[block, layer, 0, :, offset] = k
        self._pool[block, layer, 1, :, offset] = v
        return q

    def _rotate(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        cos, sin = angles[:, None].chunk(2, dim=-1)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    def attention(self, q: torch.Tensor, layer: int, batch: Batch, *, last: bool = False) -> torch.Tensor:
        segments = batch.sampling if last else batch.all
        if last:
            q = q[batch.last.long()]
        out = torch.empty_like(q)
        for row in range(segments.rows):
            begin, end = segments.host_query_start[row : row + 2].tolist()
            context = int(segments.host_context_len[row])
            blocks = segments.block_tables[row, : -(-context // BLOCK_SIZE)].long()
            pages = self._pool[blocks, layer].transpose(1, 2)  # [blocks, kv_heads, 2, 16, head_dim]
            kv = pages.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :context].float()
            position = torch.arange(context - (end - begin), context, device=q.device)
            mask = torch.arange(context, device=q.device)[None] <= position[:, None]
            found = scaled_dot_product_attention(
                q[begin:end].transpose(0, 1)[None].float(), kv[0][None], kv[1][None], attn_mask=mask, enable_gqa=True
            )
            out[begin:end] = found[0].transpose(0, 1).to(q.dtype)
        return out.flatten(1)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up
