"""RMSNorm and SiLU x up against the modules of transformers, roundings included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

EPS = 1e-5
# fp32 and fp16 agree to the last bit but for the order of a sum. The interpreter truncates to bf16 where a GPU rounds.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def llama_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    module = LlamaRMSNorm(weight.shape[0], EPS)
    module.weight.data = weight
    result: torch.Tensor = module(x).detach()
    return result


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [64, 100, 1024])
def test_norm_with_residual(kernels: Any, hidden: int, dtype: torch.dtype) -> None:
    """The fused pass returns the rounded sum and its norm, as a residual addition and LlamaRMSNorm do."""
    x, residual = (3 * torch.randn(3, hidden)).to(dtype), torch.randn(3, hidden).to(dtype)
    weight = torch.randn(hidden).to(dtype)
    y, sums = kernels.package.rms_norm(
        x.to(kernels.device), weight.to(kernels.device), EPS, residual.to(kernels.device)
    )
    assert_close(sums, x + residual)
    if dtype != torch.bfloat16 or kernels.device.type == "cuda":
        assert torch.equal(sums.cpu(), x + residual)
    assert_close(y, llama_norm(x + residual, weight))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_without_residual(kernels: Any, dtype: torch.dtype) -> None:
    """Without a residual the input begins the residual stream: it is returned itself, unchanged."""
    x, weight = torch.randn(4, 256).to(kernels.device, dtype), torch.randn(256).to(kernels.device, dtype)
    before = x.clone()
    y, sums = kernels.package.rms_norm(x, weight, EPS)
    assert sums is x
    assert torch.equal(x, before)
    assert_close(y, llama_norm(before.cpu(), weight.cpu()))


def test_norm_rounds_in_the_order_of_llama(kernels: Any) -> None:
    """In fp16 the normalised value is rounded before the weight: all but a few results are equal to the last bit."""
    x, weight = torch.randn(64, 512).half(), torch.randn(512).half()
    y, _ = kernels.package.rms_norm(x.to(kernels.device), weight.to(kernels.device), EPS)
    expected = llama_norm(x, weight)
    late = (x.float() * (x.float().square().mean(1, keepdim=True) + EPS).rsqrt() * weight.float()).half()
    assert (y.cpu() != expected).float().mean() < 0.002
    assert (late != expected).float().mean() > 0.05  # what rounding once would have given


def test_norm_of_strided_rows(kernels: Any) -> None:
    """Rows may lie apart, as in a slice of a wider tensor."""
    wide, weight = torch.randn(5, 256), torch.randn(128)
    y, _ = kernels.package.rms_norm(wide.to(kernels.device)[:, 64:192], weight.to(kernels.device), EPS)
    assert_close(y, llama_norm(wide[:, 64:192], weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 1024, 1100])
def test_silu_times_up(kernels: Any, width: int, dtype: torch.dtype) -> None:
    """SiLU of the first half is rounded to the dtype, then multiplied by the second half."""
    gate_up = (4 * torch.randn(3, 2 * width)).to(dtype)
    gate, up = gate_up.chunk(2, 1)
    assert_close(kernels.package.silu_mul(gate_up.to(kernels.device)), torch.nn.functional.silu(gate) * up)


def test_large_gates_do_not_overflow(kernels: Any) -> None:
    """SiLU of a large gate is the gate, of a large negative one zero: no infinity, no NaN."""
    gate_up = torch.tensor([[80.0, -80.0, 3e4, -3e4, 1.0, 1.0, 1.0, 1.0]], device=kernels.device)
    assert kernels.package.silu_mul(gate_up).cpu()[0].tolist() == pytest.approx([80.0, 0.0, 3e4, 0.0])


def test_nothing_in_nothing_out(kernels: Any) -> None:
    """A step without tokens launches nothing."""
    empty = torch.empty(0, 64, device=kernels.device)
    y, sums = kernels.package.rms_norm(empty, torch.ones(64, device=kernels.device), EPS, empty)
    assert y.shape == sums.shape == (0, 64)
    assert kernels.package.silu_mul(empty).shape == (0, 32)


def test_what_does_not_fit_is_refused(kernels: Any) -> None:
    """Shapes that do not fit are refused before a launch."""
    x = torch.zeros(2, 64, device=kernels.device)
    refused = kernels.package.KernelArgumentError
    with pytest.raises(refused, match=r"must be \[64\]"):
        kernels.package.rms_norm(x, torch.zeros(63, device=kernels.device), EPS)
    with pytest.raises(refused, match="must be like x"):
        kernels.package.rms_norm(x, x[0], EPS, x.half())
    with pytest.raises(refused, match="32768"):
        kernels.package.rms_norm(torch.zeros(1, 32769), torch.zeros(32769), EPS)
    with pytest.raises(refused, match="2 x width"):
        kernels.package.silu_mul(x[:, :63])
