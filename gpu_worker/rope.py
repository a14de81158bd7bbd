"""Rotary position embedding: the table of angles, with the context-stretching variants that checkpoints use."""

from __future__ import annotations

import math

import torch

from gpu_worker.config import Rope

__all__ = ["rope_table"]


def rope_table(rope: Rope, head_dim: int, positions: int) -> torch.Tensor:
    """Cosines and sines, float32 `[positions, head_dim]`: the first half of a row is cos, the second sin.

    Element i of a head pairs with element i + head_dim / 2 (the Hugging Face layout).
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequency = 1.0 / rope.theta**exponent
    scale = 1.0
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    elif rope.kind == "llama3":
        frequency = _llama3(rope, frequency)
    elif rope.kind == "yarn":
        frequency = _yarn(rope, frequency, head_dim)
        given = rope.attention_factor
        scale = given if given is not None else (0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency.to(torch.float32).to(torch.float64)
    return (torch.cat((angle.cos(), angle.sin()), dim=1) * scale).to(torch.float32)


def _llama3(rope: Rope, frequency: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long wavelengths are stretched, short ones kept, those between blended."""
    wavelength = 2 * math.pi / frequency
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = ((rope.original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequency / rope.factor + blend * frequency


def _yarn(rope: Rope, frequency: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN (arXiv 2309.00071): stretched below `beta_slow` turns over the trained context, kept above `beta_fast`."""

    def dimension(turns: float) -> float:
        return head_dim * math.log(rope.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float64) - low) / span).clamp(0, 1)
    return frequency / rope.factor * stretched + frequency * (1 - stretched)
