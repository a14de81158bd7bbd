"""Sampling: the fast kernel does what the definition says, and the definition what its words say."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch

from gpu_worker.cpu.compiled import Kernels, compile_kernels
from gpu_worker.cpu.sampler import CpuSampler
from gpu_worker.cpu.threads import Team
from gpu_worker.sampling import Sampler, TorchSampler, noise_key
from gpu_worker.slots import Row, Slot
from policies.vocabulary import Sampling

VOCAB, STRIDE = 1000, 64


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Float32 kernels."""
    return compile_kernels(torch.float32)


@pytest.fixture
def table() -> torch.Tensor:
    """Token ids of 16 slots."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, VOCAB, (16 * STRIDE,), dtype=torch.int32, generator=generator)


@pytest.fixture(params=["cpu", "torch"])
def sampler(request: pytest.FixtureRequest, table: torch.Tensor, kernels: Kernels) -> Sampler:
    """Both implementations."""
    return CpuSampler(table, STRIDE, kernels, Team()) if request.param == "cpu" else TorchSampler(table, STRIDE)


def row(index: int = 0, known: int = 30, prompt: int = 20, **sampling: Any) -> Row:
    s = Sampling(**sampling)
    slot = Slot(index, "r", 1, "g", prompt, 50, s, frozenset(s.stop_token_ids), [], 0, 0)
    return Row(slot, 0, known, True)


def logits(rows: int = 1, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def draws(sampler: Sampler, x: torch.Tensor, count: int = 400, **sampling: Any) -> Counter[int]:
    """Tokens drawn from one distribution with many seeds."""
    found: Counter[int] = Counter()
    for seed in range(0, count, 16):
        rows = [row(i, seed=seed + i, **sampling) for i in range(16)]
        found.update(sampler.sample(x.expand(16, -1), rows).tokens.tolist())
    return found


def test_the_kernel_agrees_with_the_definition(table: torch.Tensor, kernels: Kernels) -> None:
    """Any mix of parameters in a batch gives the same tokens by the kernel and by plain torch."""
    r = random.Random(5)
    plain, fast = TorchSampler(table, STRIDE), CpuSampler(table, STRIDE, kernels, Team())
    for trial in range(25):
        rows = [
            row(
                i,
                known=r.randrange(21, 60),
                temperature=r.choice([0, 0.5, 1, 2.0]),
                top_p=r.choice([1, 0.9, 0.5, 0.1, 0.0]),
                top_k=r.choice([0, 1, 5, 50, VOCAB - 1, 2 * VOCAB]),
                min_p=r.choice([0, 0.01, 0.3]),
                seed=r.randrange(2**63),
                presence_penalty=r.choice([0, 1.5]),
                frequency_penalty=r.choice([0, 0.7]),
                repetition_penalty=r.choice([1, 1.3, 0.8]),
                logit_bias=r.choice([(), ((5, 3.0), (6, -100.0))]),
                min_tokens=r.choice([0, 100]),
                stop_token_ids=(1, 2),
            )
            for i in range(16)
        ]
        x = logits(16, r.choice([0.1, 1.0, 4.0]), trial)
        assert fast.sample(x, rows).tokens.tolist() == plain.sample(x, rows).tokens.tolist()


def test_temperature_zero_takes_the_most_likely(sampler: Sampler) -> None:
    """Greedy is the first largest logit, with and without other rows that draw."""
    x = logits(2)
    x[0, 7] = x[0, 9] = x[0].max() + 1
    assert sampler.sample(x, [row(0, temperature=0.0), row(1, temperature=0.0)]).tokens.tolist()[0] == 7
    assert sampler.sample(x, [row(0, temperature=0.0), row(1)]).tokens.tolist()[0] == 7


def test_draws_follow_the_distribution(sampler: Sampler) -> None:
    """Frequencies over seeds are the softmax, within four standard deviations."""
    x = torch.full((1, VOCAB), -50.0)
    x[0, :4] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    found = draws(sampler, x, count=1600)
    for token, p in enumerate((0.4, 0.3, 0.2, 0.1)):
        assert abs(found[token] - 1600 * p) < 4 * (1600 * p * (1 - p)) ** 0.5
    assert sum(found[token] for token in range(4)) == 1600


def test_higher_temperature_spreads(sampler: Sampler) -> None:
    """More temperature, more different tokens."""
    x = logits(scale=3.0)
    assert len(draws(sampler, x, temperature=0.3)) < len(draws(sampler, x)) < len(draws(sampler, x, temperature=3.0))


def test_top_k_keeps_the_k_best(sampler: Sampler) -> None:
    """All of the k best turn up, and nothing else."""
    x = logits(scale=0.5)
    assert set(draws(sampler, x, top_k=5)) == set(x[0].topk(5).indices.tolist())


def test_top_p_keeps_the_smallest_sufficient_set(sampler: Sampler) -> None:
    """Probabilities 0.5, 0.3, 0.2: p = 0.6 needs two of them; p = 0 leaves the best."""
    x = torch.full((1, VOCAB), -50.0)
    x[0, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    assert set(draws(sampler, x, top_p=0.6)) == {0, 1}
    assert set(draws(sampler, x, top_p=0.9)) == {0, 1, 2}
    assert set(draws(sampler, x, top_p=0.0)) == {0}


def test_top_p_counts_what_top_k_left(sampler: Sampler) -> None:
    """Of 0.5, 0.3, 0.2 cut to two, the first alone has 0.625: enough for p = 0.6."""
    x = torch.full((1, VOCAB), -50.0)
    x[0, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    assert set(draws(sampler, x, top_p=0.6, top_k=2)) == {0}


def test_min_p_is_relative_to_the_best(sampler: Sampler) -> None:
    """Of 0.5, 0.3, 0.2, half of the best keeps 0.3 and drops 0.2."""
    x = torch.full((1, VOCAB), -50.0)
    x[0, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    assert set(draws(sampler, x, min_p=0.5)) == {0, 1}


def test_logit_bias_moves_a_token(sampler: Sampler) -> None:
    """+100 makes a token certain, -100 impossible."""
    x = logits()
    best = int(x[0].argmax())
    assert set(draws(sampler, x, 64, logit_bias=((11, 100.0),))) == {11}
    assert best not in draws(sampler, x, logit_bias=((best, -100.0),))


def test_repetition_penalty_counts_prompt_and_outputs_once(sampler: Sampler, table: torch.Tensor) -> None:
    """Positive logits of tokens seen are divided, negative ones multiplied, however often they came."""
    table[: 2 * STRIDE] = 500
    table[3], table[4], table[25] = 7, 7, 8
    x = torch.full((1, VOCAB), -9.0)
    x[0, 7], x[0, 8], x[0, 9] = 4.0, 3.9, 2.1
    assert sampler.sample(x, [row(temperature=0.0, repetition_penalty=1.5)]).tokens.tolist() == [7]
    assert sampler.sample(x, [row(temperature=0.0, repetition_penalty=2.0)]).tokens.tolist() == [9]
    negative = torch.full((1, VOCAB), -9.0)
    negative[0, 7], negative[0, 9] = -1.0, -1.5
    assert sampler.sample(negative, [row(temperature=0.0, repetition_penalty=2.0)]).tokens.tolist() == [9]


def test_frequency_and_presence_count_outputs_alone(sampler: Sampler, table: torch.Tensor) -> None:
    """Token 7 is in the prompt, 8 three times in the outputs: only 8 is held back, by count and by presence."""
    table[: 2 * STRIDE] = 500
    table[3] = 7
    table[22:25] = 8
    x = torch.full((1, VOCAB), -9.0)
    x[0, 8], x[0, 7] = 2.0, 1.0
    assert sampler.sample(x, [row(temperature=0.0, frequency_penalty=0.3)]).tokens.tolist() == [8]
    assert sampler.sample(x, [row(temperature=0.0, frequency_penalty=0.4)]).tokens.tolist() == [7]
    assert sampler.sample(x, [row(temperature=0.0, presence_penalty=0.9)]).tokens.tolist() == [8]
    assert sampler.sample(x, [row(temperature=0.0, presence_penalty=1.1)]).tokens.tolist() == [7]


def test_stop_tokens_wait_for_min_tokens(sampler: Sampler) -> None:
    """A stop token cannot come before `min_tokens` outputs, and can after."""
    x = logits()
    x[0, 5] = 50.0
    asked: dict[str, Any] = {"temperature": 0.0, "stop_token_ids": (5,)}
    assert sampler.sample(x, [row(known=30, min_tokens=11, **asked)]).tokens.tolist() != [5]
    assert sampler.sample(x, [row(known=30, min_tokens=10, **asked)]).tokens.tolist() == [5]


def test_a_draw_depends_on_seed_and_position_alone(sampler: Sampler, table: torch.Tensor) -> None:
    """The same row draws the same token alone, in any batch, in any slot; another seed or position draws others."""
    x = logits(16, 0.5)
    table.fill_(1)
    alone = sampler.sample(x[3:4], [row(0, seed=42)]).tokens.tolist()
    rows = [row(i, seed=i) for i in range(16)]
    rows[3] = row(3, seed=42)
    assert sampler.sample(x, rows).tokens.tolist()[3] == alone[0]
    assert len(draws(sampler, x[3:4], count=64)) > 30
    assert len({sampler.sample(x[3:4], [row(0, known=n, seed=42)]).tokens.item() for n in range(20, 60)}) > 20


def test_noise_keys_do_not_repeat() -> None:
    """Neighbouring seeds and positions have unrelated keys."""
    keys = {noise_key(seed, position) for seed in range(100) for position in range(100)}
    assert len(keys) == 10_000
    assert noise_key(2**63 + 5, 7) == noise_key(2**63 + 5, 7)


def test_logprobs_are_of_the_raw_logits(sampler: Sampler) -> None:
    """Whatever the penalties and temperature, log-probabilities are the log-softmax of what the model said."""
    x = logits(3)
    rows = [
        row(0, temperature=0.0, logprobs=0),
        row(1, temperature=0.7, logit_bias=((3, 9.0),), logprobs=4),
        row(2, temperature=0.0),
    ]
    sampled = sampler.sample(x, rows)
    reference = x.log_softmax(-1)
    assert sampled.logprob_rows == [0, 1]
    assert sampled.chosen is not None
    assert sampled.top_values is not None
    assert sampled.top_tokens is not None
    for i, token in enumerate(sampled.tokens.tolist()[:2]):
        assert sampled.chosen[i].item() == pytest.approx(reference[i, token].item(), abs=1e-5)
    assert sampled.top_tokens[1].tolist() == reference[1].topk(4).indices.tolist()
    assert sampled.top_values[1].tolist() == pytest.approx(reference[1].topk(4).values.tolist(), abs=1e-5)


def test_the_kernel_reads_bfloat16(table: torch.Tensor) -> None:
    """Logits in bfloat16 give what they give widened to float32."""
    fast = CpuSampler(table, STRIDE, compile_kernels(torch.bfloat16), Team())
    x = logits(16).bfloat16()
    rows = [row(i, seed=i, temperature=i % 3, top_p=0.8) for i in range(16)]
    assert fast.sample(x, rows).tokens.tolist() == TorchSampler(table, STRIDE).sample(x, rows).tokens.tolist()
