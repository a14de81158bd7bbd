"""The transformer: Llama, Mistral, Qwen2 and Qwen3 as one function over packed tokens.

Two things are done less often than the textbook has them. Logits are computed where a token is sampled, and nowhere
else. In the last layer, past its K and V, nothing but those positions matters, so it runs for them alone: that saves
most of a layer on every prompt token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding

from gpu_worker.attention.interface import Backend
from gpu_worker.batch import Batch
from gpu_worker.checkpoint import Checkpoint
from gpu_worker.config import ModelConfig
from gpu_worker.linear import Linear

__all__ = ["Model", "load_model"]


@dataclass(slots=True)
class Layer:
    """Weights of one layer; q, k and v are one matrix, gate and up another."""

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(slots=True)
class Model:
    """Weights, and the forward pass over them."""

    config: ModelConfig
    embedding: torch.Tensor
    layers: list[Layer]
    norm: torch.Tensor
    lm_head: Linear

    def forward(self, tokens: torch.Tensor, batch: Batch, backend: Backend) -> torch.Tensor:
        """Logits `[sampling rows, vocabulary]` of a step; K and V of its tokens are in the pool after.

        :param tokens: ids `[tokens]`, int32 or int64.
        """
        eps, final = self.config.norm_eps, len(self.layers) - 1
        backend.begin(batch)
        x = embedding(tokens, self.embedding)
        residual: torch.Tensor | None = None
        for index, layer in enumerate(self.layers):
            h, residual = backend.rms_norm(x, layer.input_norm, eps, residual)
            q = backend.rope_and_write_kv(layer.qkv(h), index, batch, layer.q_norm, layer.k_norm)
            pruned = index == final and not batch.everything_samples
            if pruned and not len(batch.last):
                break
            x = layer.o(backend.attention(q, index, batch, last=pruned))
            if pruned:
                residual = residual.index_select(0, batch.last)
            h, residual = backend.rms_norm(x, layer.post_norm, eps, residual)
            x = layer.down(backend.silu_mul(layer.gate_up(h)))
        if not len(batch.last):
            return x.new_empty((0, self.config.vocab_size))
        h, _ = backend.rms_norm(x, self.norm, eps, residual)
        return self.lm_head(h)


def load_model(
    config: ModelConfig, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, packed: bool
) -> Model:
    """Read the weights; `packed` as of `Linear`. A matrix's plain form is freed once it is packed.

    :raises BadModelDirectory: a tensor is missing or has another shape than config.json says.
    """

    def tensor(name: str, *shape: int) -> torch.Tensor:
        return checkpoint.take(name, shape).to(device=device, dtype=dtype, copy=True)

    def fused(prefix: str, parts: dict[str, int], inputs: int, bias: bool) -> Linear:
        """One layer out of several that read the same input."""
        weight = torch.cat([tensor(f"{prefix}.{name}.weight", rows, inputs) for name, rows in parts.items()])
        b = torch.cat([tensor(f"{prefix}.{name}.bias", rows) for name, rows in parts.items()]) if bias else None
        return Linear(weight, b, packed=packed)

    c = config
    q_rows, kv_rows = c.heads * c.head_dim, c.kv_heads * c.head_dim
    embed = tensor("model.embed_tokens.weight", c.vocab_size, c.hidden)
    layers = []
    for index in range(c.layers):
        at = f"model.layers.{index}"
        layers.append(
            Layer(
                input_norm=tensor(f"{at}.input_layernorm.weight", c.hidden),
                qkv=fused(
                    f"{at}.self_attn", {"q_proj": q_rows, "k_proj": kv_rows, "v_proj": kv_rows}, c.hidden, c.qkv_bias
                ),
                q_norm=tensor(f"{at}.self_attn.q_norm.weight", c.head_dim) if c.qk_norm else None,
                k_norm=tensor(f"{at}.self_attn.k_norm.weight", c.head_dim) if c.qk_norm else None,
                o=fused(f"{at}.self_attn", {"o_proj": c.hidden}, q_rows, c.o_bias),
                post_norm=tensor(f"{at}.post_attention_layernorm.weight", c.hidden),
                gate_up=fused(
                    f"{at}.mlp", {"gate_proj": c.intermediate, "up_proj": c.intermediate}, c.hidden, c.mlp_bias
                ),
                down=fused(f"{at}.mlp", {"down_proj": c.hidden}, c.intermediate, c.mlp_bias),
            )
        )
    head = embed if c.tied else tensor("lm_head.weight", c.vocab_size, c.hidden)
    return Model(c, embed, layers, tensor("model.norm.weight", c.hidden), Linear(head, packed=packed))
