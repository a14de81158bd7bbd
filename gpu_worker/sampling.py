"""How a token is drawn from logits, in plain torch: the definition, and what runs on CUDA.

In this order: logit bias; repetition penalty over all tokens so far (positive logits divided by it, negative ones
multiplied); frequency and presence penalties over the outputs so far; no stop token before `min_tokens` outputs. Then,
at temperature 0, the most likely token. Otherwise logits are divided by the temperature; top-k keeps the k best and
top-p the best whose probabilities, renormalised over those, add up to p (with either, all that tie with the last one);
min-p keeps what is at least so likely as min_p times the best. Of what is left, one is drawn.

The draw is the Gumbel-max trick with noise that is a hash of (seed, position, token) and of nothing else: a request
draws the same tokens whatever shares its batch and wherever it is resumed, and noise in the last bits of the logits
changes a draw no more often than it changes the distribution (an inverse-CDF draw would change at nearly every token
of a flat distribution).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from gpu_worker.slots import Row

__all__ = ["Sampled", "Sampler", "TorchSampler", "add_logprobs", "exponential_noise", "noise_key"]

_MASK = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


@dataclass(slots=True)
class Sampled:
    """Tokens of a step's sampling rows, on the device, and what was asked for beside them."""

    tokens: torch.Tensor  # [rows], int32
    logprob_rows: list[int]  # rows that asked
    chosen: torch.Tensor | None = None  # [logprob rows], float32
    top_values: torch.Tensor | None = None  # [logprob rows, most asked for], float32
    top_tokens: torch.Tensor | None = None  # the same, int32


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit keys of the noise at a position (splitmix64, by Steele, Lea and Flood)."""
    mixed = _splitmix64((_splitmix64(seed & _MASK64) + position) & _MASK64)
    return mixed & _MASK, mixed >> 32


def _lowbias32(x: torch.Tensor) -> torch.Tensor:
    """Chris Wellons' 32-bit mixer, on int64 tensors that hold 32 bits."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def exponential_noise(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Exponential variates `[rows, vocab_size]`, float32, of `keys` `[rows, 2]` (int64).

    argmax(logit - log(noise)) draws from softmax(logits).
    """
    token = torch.arange(vocab_size, device=keys.device)
    x = _lowbias32((token[None] + keys[:, :1]) & _MASK)
    x = _lowbias32(x ^ keys[:, 1:])
    # Of v near 0, which is what wins, float32 keeps the relative precision; near 1 it is cut, which never wins.
    v = ((x.to(torch.float32) + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log1p(-v)


class Sampler(Protocol):
    """Draws tokens."""

    def sample(self, logits: torch.Tensor, rows: list[Row]) -> Sampled:
        """One token for each of `rows`, from `logits` `[rows, vocabulary]` in the model's dtype (not changed)."""


class TorchSampler:
    """Samples a step's rows. `token_table` is the flat int32 table of all slots, `stride` its tokens a slot."""

    def __init__(self, token_table: torch.Tensor, stride: int) -> None:
        self._table = token_table
        self._stride = stride

    def sample(self, logits: torch.Tensor, rows: list[Row]) -> Sampled:
        """One token for each of `rows`, from `logits` `[rows, vocabulary]` in the model's dtype (not changed)."""
        asked = [i for i, row in enumerate(rows) if row.slot.sampling.logprobs >= 0]
        if all(row.slot.plain_greedy for row in rows):
            sampled = Sampled(logits.argmax(dim=-1).to(torch.int32), asked)
        else:
            sampled = Sampled(self._draw(logits, rows), asked)
        if asked:
            add_logprobs(sampled, logits, rows)
        return sampled

    def _draw(self, logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        x = logits.to(torch.float32, copy=True)
        for i, row in enumerate(rows):
            if not row.slot.plain_greedy:
                self._penalise(x[i], row)
        device = x.device
        settings = [row.slot.sampling for row in rows]
        greedy = x.argmax(dim=-1)
        temperature = torch.tensor([s.temperature if s.temperature > 0 else 1.0 for s in settings])
        x /= temperature.to(device)[:, None]
        x = self._cut(x, rows)
        keys = torch.tensor([noise_key(r.slot.sampling.seed, r.start + r.count) for r in rows], device=device)
        drawn = (x - exponential_noise(keys, x.shape[1]).log()).argmax(dim=-1)
        is_greedy = torch.tensor([s.temperature <= 0 for s in settings], device=device)
        return torch.where(is_greedy, greedy, drawn).to(torch.int32)

    def _penalise(self, x: torch.Tensor, row: Row) -> None:
        slot, s = row.slot, row.slot.sampling
        if s.logit_bias:
            ids = torch.tensor([token for token, _ in s.logit_bias], device=x.device)
            x.index_add_(0, ids, torch.tensor([bias for _, bias in s.logit_bias], device=x.device))
        begin = slot.index * self._stride
        known = row.start + row.count
        if s.repetition_penalty != 1:
            seen = torch.zeros_like(x, dtype=torch.bool).index_fill_(0, self._table[begin : begin + known].long(), True)
            x.copy_(torch.where(seen, torch.where(x > 0, x / s.repetition_penalty, x * s.repetition_penalty), x))
        if s.frequency_penalty or s.presence_penalty:
            outputs = self._table[begin + slot.prompt_tokens : begin + known].long()
            count = torch.zeros_like(x).index_add_(0, outputs, torch.ones(len(outputs), device=x.device))
            x -= s.frequency_penalty * count + s.presence_penalty * (count > 0)
        if known - slot.prompt_tokens < s.min_tokens and slot.stop_ids:
            x[torch.tensor(sorted(slot.stop_ids), device=x.device)] = -math.inf

    def _cut(self, x: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Set to -inf what top-k, top-p and min-p leave out."""
        settings = [row.slot.sampling for row in rows]
        top_k, top_p, min_p = ([getattr(s, name) for s in settings] for name in ("top_k", "top_p", "min_p"))
        vocab = x.shape[1]
        if any(0 < k < vocab for k in top_k) or any(p < 1 for p in top_p):
            ordered = x.sort(dim=-1, descending=True).values
            k = torch.tensor([k if 0 < k < vocab else vocab for k in top_k], device=x.device)
            kth = ordered.gather(1, (k - 1)[:, None])
            ordered = ordered.masked_fill(ordered < kth, -math.inf)
            probability = ordered.softmax(dim=-1)
            before = probability.cumsum(dim=-1) - probability
            p = torch.tensor(top_p, dtype=torch.float32, device=x.device)[:, None]
            kept = (before < p).sum(dim=-1, keepdim=True).clamp(min=1)
            x = x.masked_fill(x < torch.maximum(kth, ordered.gather(1, kept - 1)), -math.inf)
        if any(m > 0 for m in min_p):
            m = torch.tensor(min_p, dtype=torch.float32, device=x.device)[:, None]
            x = x.masked_fill(x < x.amax(dim=-1, keepdim=True) + m.log(), -math.inf)
        return x


def add_logprobs(sampled: Sampled, logits: torch.Tensor, rows: list[Row]) -> None:
    """Fill in log-probabilities of the rows that asked: of the raw logits, before penalties and temperature."""
    index = torch.tensor(sampled.logprob_rows, device=logits.device)
    table = logits[index].float().log_softmax(dim=-1)
    sampled.chosen = table.gather(1, sampled.tokens[index].long()[:, None])[:, 0]
    most = max(rows[i].slot.sampling.logprobs for i in sampled.logprob_rows)
    if most:
        values, tokens = table.topk(min(most, table.shape[1]), dim=-1)
        sampled.top_values, sampled.top_tokens = values, tokens.to(torch.int32)
