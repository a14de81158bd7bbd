"""How near the Triton kernels come to what the GPU can do, with torch's own attention as the other side.

    python benchmarks/kernels_gpu.py [--dtype bf16] [--out benchmarks/results/kernels_gpu.json]
    python benchmarks/kernels_gpu.py --sweep        # finds rows for gpu_worker/kernels/tiles.py instead

Decode and the fused small kernels are bound by memory: their bytes a second are given as a share of a large copy
measured in the same run. Prefill is bound by the tensor cores: its share is of a large square GEMM. Everything runs in
CUDA graphs, which leaves out the cost of launching, and attention over several layers, more bytes than the L2 holds.
The other side is `scaled_dot_product_attention` on contiguous KV of one length: it is spared paging and raggedness.

Ends with 0 if results agree and every target is met, 1 if not, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import triton

from gpu_worker.kernels import attention, paged_attention, rms_norm, rope_and_write_kv, silu_mul
from gpu_worker.kernels.tiles import Regime, Tile, tile_for

PAGE = 16
LAYERS = 4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
AGREEMENT = 2e-2


@dataclass(frozen=True, slots=True)
class Case:
    """Rows as (query_len, context_len), and the share of the roof that they are to reach (None: no target)."""

    name: str
    rows: tuple[tuple[int, int], ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    target: float | None = None

    @property
    def decode(self) -> bool:
        return all(query == 1 for query, _ in self.rows)

    @property
    def even(self) -> bool:
        """All rows alike: what the other side can run without padding."""
        return len(set(self.rows)) == 1

    def kv_bytes(self, itemsize: int) -> int:
        return sum(context for _, context in self.rows) * self.kv_heads * self.head_dim * 2 * itemsize

    def flops(self) -> int:
        pairs = sum(query * (context - query) + query * (query + 1) // 2 for query, context in self.rows)
        return 4 * self.heads * self.head_dim * pairs


@dataclass(frozen=True, slots=True)
class Result:
    """`rate` is GB/s or TFLOP/s; `share` of the measured roof; `other_ms` of torch, where it can run the case."""

    name: str
    ms: float
    other_ms: float | None
    rate: float
    unit: str
    share: float
    target: float | None
    worst_error: float | None

    @property
    def met(self) -> bool:
        return (self.target is None or self.share >= self.target) and (self.worst_error or 0.0) <= AGREEMENT


CASES = (
    Case("decode 64 x 4096", ((1, 4096),) * 64, target=0.80),
    Case("decode 256 x 1024", ((1, 1024),) * 256, target=0.80),
    Case("decode 16 x 8192", ((1, 8192),) * 16, target=0.80),
    Case("decode 1 x 32768", ((1, 32768),), target=0.60),
    Case("decode 64 ragged", tuple((1, 256 * (1 + i % 32)) for i in range(64))),
    Case("decode 64 x 4096, MHA", ((1, 4096),) * 64, heads=8),
    Case("decode 64 x 4096, D 64", ((1, 4096),) * 64, head_dim=64),
    Case("decode 32 x 4096, D 256", ((1, 4096),) * 32, heads=16, head_dim=256),
    Case("prefill 1 x 8192", ((8192, 8192),), target=0.45),
    Case("prefill 4 x 2048", ((2048, 2048),) * 4, target=0.45),
    Case("prefill 1 x 16384, D 64", ((16384, 16384),), head_dim=64),
    Case("prefill 1 x 8192, D 256", ((8192, 8192),), heads=16, head_dim=256),
    Case("chunk 512 behind 8192", ((512, 8704),)),
    Case("mixed 2048 + 63 x 4096", ((2048, 2048), *((1, 4096),) * 63)),
)


def time_ms(run: Callable[[], object], repeats: int = 20) -> float:
    """Median milliseconds of `run`, replayed as a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and warms up, as capture demands
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(sorted(times[3:])[repeats // 2])


def measure_roofs(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """GB/s of a copy of 2 GiB (bytes read and written) and TFLOP/s of an 8,192 GEMM."""
    source = torch.empty(2**30, dtype=torch.float16, device=device)
    target = torch.empty_like(source)
    copy_ms = time_ms(lambda: target.copy_(source))
    a = torch.randn(8192, 8192, device=device).to(dtype)
    gemm_ms = time_ms(lambda: torch.mm(a, a, out=target.view(dtype)[: 8192 * 8192].view(8192, 8192)))
    return 2 * source.nbytes / copy_ms / 1e6, 2 * 8192**3 / gemm_ms / 1e9


def attention_sides(
    case: Case, dtype: torch.dtype, device: torch.device
) -> tuple[Callable[[int], torch.Tensor], Callable[[int], torch.Tensor] | None]:
    """Attention of one layer by the kernels, and by torch (same KV, contiguous) if the rows are alike."""
    blocks_of = [-(-context // PAGE) for _, context in case.rows]
    order = torch.randperm(sum(blocks_of), device=device).to(torch.int32)
    tables = torch.zeros(len(case.rows), max(blocks_of), dtype=torch.int32, device=device)
    for row, blocks in enumerate(order.split_with_sizes(blocks_of)):
        tables[row, : len(blocks)] = blocks
    pool = torch.randn(len(order), LAYERS, 2, case.kv_heads, PAGE, case.head_dim, device=device, dtype=dtype)
    lengths = torch.tensor([0, *(query for query, _ in case.rows)])
    starts = lengths.cumsum(0).to(device, torch.int32)
    contexts = torch.tensor([context for _, context in case.rows], dtype=torch.int32, device=device)
    q = torch.randn(int(lengths.sum()), case.heads, case.head_dim, device=device, dtype=dtype)
    longest_query, longest_context = max(q for q, _ in case.rows), max(context for _, context in case.rows)
    scale = case.head_dim**-0.5

    def ours(layer: int) -> torch.Tensor:
        return paged_attention(
            q, pool, layer, tables, starts, contexts,
            scale=scale, max_query_len=longest_query, max_context_len=longest_context,
        )  # fmt: skip

    if not case.even:
        return ours, None
    rows, (query, context) = len(case.rows), case.rows[0]
    flat = pool[tables.long()].permute(2, 3, 0, 4, 1, 5, 6).reshape(LAYERS, 2, rows, case.kv_heads, -1, case.head_dim)
    keys, values = flat[:, 0, :, :, :context].contiguous(), flat[:, 1, :, :, :context].contiguous()
    del flat
    queries = q.view(rows, query, case.heads, case.head_dim).transpose(1, 2)
    # A chunk behind a prefix is causal from the lower right corner, which is_causal does not mean.
    mask = None
    if 1 < query < context:
        mask = torch.ones(query, context, dtype=torch.bool, device=device).tril(context - query)

    def theirs(layer: int) -> torch.Tensor:
        out = F.scaled_dot_product_attention(
            queries,
            keys[layer],
            values[layer],
            attn_mask=mask,
            is_causal=query == context,
            scale=scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2).reshape(-1, case.heads, case.head_dim)

    return ours, theirs


def over_layers(run: Callable[[int], object]) -> Callable[[], None]:
    def all_layers() -> None:
        for layer in range(LAYERS):
            run(layer)

    return all_layers


def run_attention(case: Case, roofs: tuple[float, float], dtype: torch.dtype, device: torch.device) -> Result:
    ours, theirs = attention_sides(case, dtype, device)
    error = float((ours(0).float() - theirs(0).float()).abs().max()) if theirs else None
    ms = time_ms(over_layers(ours)) / LAYERS
    other_ms = time_ms(over_layers(theirs)) / LAYERS if theirs else None
    if case.decode:
        rate, unit, roof = case.kv_bytes(dtype.itemsize) / ms / 1e6, "GB/s", roofs[0]
    else:
        rate, unit, roof = case.flops() / ms / 1e9, "TFLOP/s", roofs[1]
    return Result(case.name, ms, other_ms, rate, unit, rate / roof, case.target, error)


def run_small(tokens: int, roofs: tuple[float, float], dtype: torch.dtype, device: torch.device) -> list[Result]:
    """The fused kernels at the widths of an 8B model, against the same in eager torch."""
    hidden, width, heads, kv_heads, head_dim = 4096, 14336, 32, 8, 128
    x, residual = (torch.randn(tokens, hidden, device=device, dtype=dtype) for _ in range(2))
    weight = torch.ones(hidden, device=device, dtype=dtype)
    gate_up = torch.randn(tokens, 2 * width, device=device, dtype=dtype)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device, dtype=dtype)
    pool = torch.zeros(-(-tokens // PAGE), 1, 2, kv_heads, PAGE, head_dim, device=device, dtype=dtype)
    positions = torch.arange(tokens, device=device)
    table = torch.randn(tokens, head_dim, device=device)

    def eager_silu() -> torch.Tensor:
        gate, up = gate_up.chunk(2, 1)
        return F.silu(gate) * up

    entries: list[tuple[str, Callable[[], object], Callable[[], object] | None, int]] = [
        (
            "rms_norm + residual",
            lambda: rms_norm(x, weight, 1e-5, residual),
            lambda: F.rms_norm(x + residual, (hidden,), weight, 1e-5),
            4 * x.nbytes,
        ),
        ("silu x up", lambda: silu_mul(gate_up), eager_silu, gate_up.nbytes * 3 // 2),
        (
            "rope + kv write",
            lambda: rope_and_write_kv(qkv, table, positions, pool, 0, positions, num_heads=heads),
            None,
            2 * qkv.nbytes + table.nbytes,
        ),
    ]
    results = []
    for name, ours, theirs, moved in entries:
        ms, other_ms = time_ms(ours), time_ms(theirs) if theirs else None
        rate = moved / ms / 1e6
        results.append(Result(f"{name}, {tokens} tokens", ms, other_ms, rate, "GB/s", rate / roofs[0], None, None))
    return results


def sweep(dtype: torch.dtype, device: torch.device) -> None:
    """Print the fastest tile of each regime and head dimension, as rows of the table in tiles.py."""
    major = torch.cuda.get_device_capability(device)[0]
    lookup = tile_for
    for regime, head_dim in itertools.product(Regime, (64, 128, 256)):
        rows = ((1, 4096),) * 64 if regime is Regime.DECODE else ((4096, 4096),)
        ours, _ = attention_sides(Case("sweep", rows, heads=16, kv_heads=4, head_dim=head_dim), dtype, device)
        row_choices = (16,) if regime is Regime.DECODE else (64, 128)
        best, best_ms = lookup(device, head_dim=head_dim, regime=regime, dtype=dtype), float("inf")
        for choice in itertools.product(row_choices, (16, 32, 64, 128), (2, 4, 8), (1, 2, 3, 4, 5)):
            candidate = Tile(*choice)
            vars(attention)["tile_for"] = lambda *_, tile=candidate, **__: tile
            try:
                ms = time_ms(over_layers(ours), repeats=5) / LAYERS
            except (triton.runtime.errors.OutOfResources, triton.CompilationError):
                continue
            if ms < best_ms:
                best, best_ms = candidate, ms
        tile = f"Tile({best.rows}, {best.tokens}, {best.warps}, {best.stages})"
        print(f"    ({major}, {head_dim}, Regime.{regime.name}, 2): {tile},  # {best_ms:.3f} ms", flush=True)
    vars(attention)["tile_for"] = lookup


def print_result(result: Result) -> None:
    other = f"{result.other_ms:9.3f} {result.other_ms / result.ms:6.2f}x" if result.other_ms else f"{'-':>9} {'-':>7}"
    target = "" if result.target is None else f"  target {result.target:.0%}: {'met' if result.met else 'MISSED'}"
    error = "" if result.worst_error is None else f"  error {result.worst_error:.1e}"
    rate = f"{result.rate:8.0f} {result.unit:8}{result.share:6.1%}"
    print(f"{result.name:28}{result.ms:9.3f} {other} {rate}{target}{error}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels_gpu.json")
    parser.add_argument("--sweep", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("kernels_gpu: needs a CUDA device and torch sees none: nothing was measured", file=sys.stderr)
        return 2
    device, dtype = torch.device("cuda", torch.cuda.current_device()), DTYPES[options.dtype]
    torch.manual_seed(0)
    if options.sweep:
        sweep(dtype, device)
        return 0
    roofs = measure_roofs(dtype, device)
    name = torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}, {options.dtype}")
    print(f"measured roofs: copy {roofs[0]:.0f} GB/s, GEMM {roofs[1]:.0f} TFLOP/s")
    print(f"{'case':28}{'ms':>9} {'torch ms':>9} {'faster':>7} {'rate':>8} {'':8}{'share':>6}")
    results = []
    for case in CASES:
        results.append(run_attention(case, roofs, dtype, device))
        print_result(results[-1])
        torch.cuda.empty_cache()
    for tokens in (64, 8192):
        for result in run_small(tokens, roofs, dtype, device):
            results.append(result)
            print_result(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": options.dtype,
        "copy_gb_s": roofs[0],
        "gemm_tflop_s": roofs[1],
        "results": [asdict(result) | {"met": result.met} for result in results],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
