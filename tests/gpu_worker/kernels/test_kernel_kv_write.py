"""Writing into the paged pool: alone, and fused with the QKV split, the norm of Qwen3 and the rotation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import huge_pool
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

LAYER = 1
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def empty_pool(kernels: Any, *, kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((4, 2, 2, kv_heads, 16, head_dim), 7.0, dtype=dtype, device=kernels.device)


def cos_sin_table(positions: int, head_dim: int, device: torch.device) -> torch.Tensor:
    frequency = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angle = torch.arange(positions)[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 64), (3, 80), (8, 128)])
def test_tokens_land_in_their_slots_and_nowhere_else(
    kernels: Any, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Each token's keys and values fill its slot of its layer; a slot of -1 is skipped; all other memory stays."""
    pool = empty_pool(kernels, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    expected = pool.clone()
    slots = [0, 17, -1, 63, 30]
    k = torch.randn(len(slots), kv_heads, head_dim, device=kernels.device).to(dtype)
    v = torch.randn(len(slots), kv_heads, head_dim, device=kernels.device).to(dtype)
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected[slot // 16, LAYER, 0, :, slot % 16] = k[token]
            expected[slot // 16, LAYER, 1, :, slot % 16] = v[token]
    kernels.package.write_kv(k, v, pool, LAYER, torch.tensor(slots, device=kernels.device))
    assert torch.equal(pool, expected)


def test_slots_beyond_2_to_the_31(kernels: Any) -> None:
    """A slot whose elements start past 2^31 is written there, and not where 32 bits would wrap to."""
    blocks = 2**31 // (2 * 16 * 64) + 4
    if kernels.device.type == "cuda":
        pool = torch.zeros((blocks, 1, 2, 1, 16, 64), dtype=torch.float16, device=kernels.device)
    else:
        pool = huge_pool(blocks, 1, 64)
    k = torch.randn(2, 1, 64, device=kernels.device).half()
    last = blocks * 16 - 1
    assert (last // 16) * pool.stride(0) > 2**31
    kernels.package.write_kv(k, -k, pool, 0, torch.tensor([5, last], device=kernels.device))
    assert torch.equal(pool[0, 0, :, 0, 5], torch.stack((k[0, 0], -k[0, 0])))
    assert torch.equal(pool[-1, 0, :, 0, 15], torch.stack((k[1, 0], -k[1, 0])))
    assert int(pool[0].count_nonzero()) == 2 * int(k[0].count_nonzero())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (7, 1, 80), (8, 2, 128)])
def test_fused_pass_equals_its_parts(
    kernels: Any, heads: int, kv_heads: int, head_dim: int, norm: bool, dtype: torch.dtype
) -> None:
    """Split, norm, rotation and write in one pass give what transformers' Qwen3 modules give one after the other."""
    positions, slots, eps = [0, 3, 40, 2], [16, 19, -1, 2], 1e-6
    draw = torch.Generator().manual_seed(1)
    qkv = torch.randn(len(slots), (heads + 2 * kv_heads) * head_dim, generator=draw).to(dtype)
    table = cos_sin_table(64, head_dim, torch.device("cpu"))
    q, k, v = qkv.view(len(slots), -1, head_dim).split_with_sizes((heads, kv_heads, kv_heads), 1)
    weights: dict[str, torch.Tensor] = {}
    if norm:
        for name in ("q_norm", "k_norm"):
            weights[name] = (1 + 0.1 * torch.randn(head_dim, generator=draw)).to(dtype)
        normed = []
        for name, x in (("q_norm", q), ("k_norm", k)):
            module = Qwen3RMSNorm(head_dim, eps)
            module.weight.data = weights[name]
            normed.append(module(x).detach())
        q, k = normed
    cos, sin = (half[torch.tensor(positions)].repeat(1, 2)[None] for half in table.chunk(2, 1))
    q, k = (
        x[0].transpose(0, 1) for x in apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    )

    pool = empty_pool(kernels, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    expected = pool.cpu()
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected[slot // 16, LAYER, 0, :, slot % 16] = k[token].to(dtype)
            expected[slot // 16, LAYER, 1, :, slot % 16] = v[token]
    actual = kernels.package.rope_and_write_kv(
        qkv.to(kernels.device),
        table.to(kernels.device),
        torch.tensor(positions, device=kernels.device),
        pool,
        LAYER,
        torch.tensor(slots, device=kernels.device),
        num_heads=heads,
        eps=eps,
        **{name: weight.to(kernels.device) for name, weight in weights.items()},
    )
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.cpu(), q.to(dtype), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(pool.cpu(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(pool[:, LAYER, 1].cpu(), expected[:, LAYER, 1])  # values are copied, not computed


def test_what_does_not_fit_is_refused(kernels: Any) -> None:
    """Shapes that would write beyond the pool are refused before a launch."""
    pool = empty_pool(kernels, kv_heads=2, head_dim=64)
    k = torch.zeros(3, 2, 64, device=kernels.device)
    slots = torch.zeros(3, dtype=torch.int64, device=kernels.device)
    refused = kernels.package.KernelArgumentError
    with pytest.raises(refused, match=r"slot_mapping must be int64 \[3\]"):
        kernels.package.write_kv(k, k, pool, 0, slots.int())
    with pytest.raises(refused, match="must be alike"):
        kernels.package.write_kv(k, k.half(), pool, 0, slots)
    with pytest.raises(refused, match=r"must be \[blocks, layers, 2, 1, block_size, 64\]"):
        kernels.package.write_kv(k[:, :1], k[:, :1], pool, 0, slots)
    table = cos_sin_table(8, 64, kernels.device)
    with pytest.raises(refused, match="heads a multiple of 2"):
        kernels.package.rope_and_write_kv(
            torch.zeros(3, 7 * 64, device=kernels.device), table, slots, pool, 0, slots, num_heads=3
        )
    with pytest.raises(refused, match="both or neither"):
        kernels.package.rope_and_write_kv(
            torch.zeros(3, 8 * 64, device=kernels.device), table, slots, pool, 0, slots, num_heads=4, q_norm=table[0]
        )
