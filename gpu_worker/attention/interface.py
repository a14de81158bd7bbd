"""The operations that a backend provides. All tensors are in the model's dtype and on its device unless said."""

from __future__ import annotations

from typing import Protocol

import torch

from gpu_worker.batch import Batch

__all__ = ["Backend"]


class Backend(Protocol):
    """Operations of one model on one device. May reuse its outputs' memory at the next call of the same operation."""

    def begin(self, batch: Batch) -> None:
        """A step begins: what is the same for all its layers may be prepared here."""

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add, then normalise: `[tokens, hidden]` each.

        :returns: (norm(x + residual) x weight, x + residual). Without a residual, x is the sum. May write over its
            arguments.
        """

    def rope_and_write_kv(
        self, qkv: torch.Tensor, layer: int, batch: Batch, q_norm: torch.Tensor | None, k_norm: torch.Tensor | None
    ) -> torch.Tensor:
        """Split `qkv` `[tokens, (heads + 2 kv_heads) x head_dim]`, norm q and k by head where weights are given, rotate
        them to their positions, and write k and v into the pool.

        :returns: q `[tokens, heads, head_dim]`; maybe a view of `qkv`, which must stay until attention is through.
        """

    def attention(self, q: torch.Tensor, layer: int, batch: Batch, *, last: bool = False) -> torch.Tensor:
        """Causal attention of all queries over the pool, or with `last` of the sampling ones alone.

        :param q: what `rope_and_write_kv` returned for this layer, all tokens of it, `last` or not.
        :returns: `[tokens or sampling rows, heads x head_dim]`
        """

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`[tokens, 2 x intermediate]` to silu(first half) x second half."""
